//! Parameters of the target's methods, named as SPDK names them. An unknown one is refused by its name.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use penstock_spec::nvmf::connect::CNTLID_MAX;
use penstock_spec::nvmf::discovery::DISCOVERY_PORT_TCP;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::TargetError;
use crate::ana;
use crate::config::{
    COMMAND_QUIESCE_MS, DuplicateHost, MODEL_LEN_MAX, NAMESPACES_DEFAULT, NAMESPACES_MAX, SERIAL_LEN_MAX,
};
use crate::io_cmd::{DMRSL_DEFAULT, WZSL_DEFAULT, WZSL_MAX};

/// `nvmf_create_subsystem`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSubsystem {
    /// Its name.
    pub nqn: String,
    /// Serial number: 1 to 20 printable ASCII characters.
    #[serde(default = "default_serial")]
    pub serial_number: String,
    /// Model number: 1 to 40 printable ASCII characters.
    #[serde(default = "default_model")]
    pub model_number: String,
    /// The largest NSID; 0 stands for the default.
    #[serde(default)]
    pub max_namespaces: u32,
    /// Whether every host may connect.
    #[serde(default)]
    pub allow_any_host: bool,
    /// The smallest controller identifier.
    #[serde(default = "default_min_cntlid")]
    pub min_cntlid: u16,
    /// The largest controller identifier.
    #[serde(default = "default_max_cntlid")]
    pub max_cntlid: u16,
    /// WZSL: log2 of the longest Write Zeroes, in pages of 4096 bytes; 0: no limit.
    #[serde(default = "default_wzsl")]
    pub wzsl: u8,
    /// DMRSL and DMSL: blocks that one Dataset Management command deallocates at most; 0: no limit.
    #[serde(default = "default_dmrsl")]
    pub dmrsl: u32,
    /// Whether Asymmetric Namespace Access is reported.
    #[serde(default)]
    pub ana_reporting: bool,
    /// The largest ANA group identifier; as many as there may be namespaces where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ana_groups: Option<u32>,
    /// Passthrough of NVMe commands: only `false` is taken.
    #[serde(default, skip_serializing)]
    pub passthrough: bool,
    /// Whether hosts may reset the whole subsystem.
    #[serde(default)]
    pub enable_nssr: bool,
    /// What happens when a host connects another controller at the same port: "allow", "reject" or "replace".
    #[serde(default)]
    pub duplicate_host: DuplicateHost,
    /// CQT, in milliseconds.
    #[serde(default = "default_quiesce")]
    pub command_quiesce_ms: u16,
}

fn default_serial() -> String {
    "0".repeat(SERIAL_LEN_MAX)
}

fn default_model() -> String {
    "Penstock bdev Controller".to_owned()
}

const fn default_min_cntlid() -> u16 {
    1
}

const fn default_quiesce() -> u16 {
    COMMAND_QUIESCE_MS
}

const fn default_max_cntlid() -> u16 {
    CNTLID_MAX
}

const fn default_wzsl() -> u8 {
    WZSL_DEFAULT
}

const fn default_dmrsl() -> u32 {
    DMRSL_DEFAULT
}

impl CreateSubsystem {
    /// A subsystem of that name with all defaults.
    #[must_use]
    pub fn named(nqn: &str) -> Self {
        Self {
            nqn: nqn.to_owned(),
            serial_number: default_serial(),
            model_number: default_model(),
            max_namespaces: 0,
            allow_any_host: false,
            min_cntlid: default_min_cntlid(),
            max_cntlid: default_max_cntlid(),
            wzsl: default_wzsl(),
            dmrsl: default_dmrsl(),
            ana_reporting: false,
            max_ana_groups: None,
            passthrough: false,
            enable_nssr: false,
            duplicate_host: DuplicateHost::Allow,
            command_quiesce_ms: COMMAND_QUIESCE_MS,
        }
    }

    pub(super) fn check(&self) -> Result<(), TargetError> {
        text("serial_number", &self.serial_number, SERIAL_LEN_MAX)?;
        text("model_number", &self.model_number, MODEL_LEN_MAX)?;
        if self.max_namespaces > NAMESPACES_MAX {
            return Err(TargetError::Invalid {
                parameter: "max_namespaces",
                value: self.max_namespaces.to_string(),
                allowed: format!("1 to {NAMESPACES_MAX}, or 0 for {NAMESPACES_DEFAULT}"),
            });
        }
        if self.min_cntlid == 0 || self.min_cntlid > self.max_cntlid || self.max_cntlid > CNTLID_MAX {
            return Err(TargetError::Invalid {
                parameter: "min_cntlid and max_cntlid",
                value: format!("{} and {}", self.min_cntlid, self.max_cntlid),
                allowed: format!("a range within 1 to {CNTLID_MAX}"),
            });
        }
        if self.max_ana_groups.is_some_and(|groups| groups == 0 || groups > ana::GROUPS_MAX) {
            return Err(TargetError::Invalid {
                parameter: "max_ana_groups",
                value: self.max_ana_groups.unwrap_or(0).to_string(),
                allowed: format!("1 to {}", ana::GROUPS_MAX),
            });
        }
        if self.wzsl > WZSL_MAX {
            let allowed = format!("1 to {WZSL_MAX}, or 0 for no limit");
            return Err(TargetError::Invalid { parameter: "wzsl", value: self.wzsl.to_string(), allowed });
        }
        refuse("passthrough", self.passthrough)
    }
}

fn text(parameter: &'static str, value: &str, len_max: usize) -> Result<(), TargetError> {
    let printable = value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if printable && (1..=len_max).contains(&value.len()) {
        return Ok(());
    }
    let allowed = format!("1 to {len_max} printable ASCII characters");
    Err(TargetError::Invalid { parameter, value: format!("{value:?}"), allowed })
}

fn refuse(parameter: &'static str, value: bool) -> Result<(), TargetError> {
    if !value {
        return Ok(());
    }
    let allowed = "false: it is not supported".to_owned();
    Err(TargetError::Invalid { parameter, value: "true".to_owned(), allowed })
}

/// The `namespace` object of `nvmf_subsystem_add_ns`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// The bdev: name, alias or UUID.
    pub bdev_name: String,
    /// NSID; the first free one where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    /// NGUID: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nguid: Option<String>,
    /// EUI64: 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eui64: Option<String>,
    /// UUID; the bdev's where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// ANA group; the one with the number of the NSID where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anagrpid: Option<u32>,
    /// The file in which reservations persist that hosts want to persist through power loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ptpl_file: Option<PathBuf>,
    /// Whether the namespace is hidden from hosts that are not named: only `false` is taken.
    #[serde(default, skip_serializing)]
    pub no_auto_visible: bool,
}

/// UUID, NGUID and EUI64 of a namespace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) uuid: Uuid,
    pub(super) nguid: [u8; 16],
    pub(super) eui64: [u8; 8],
}

impl Namespace {
    /// A namespace on that bdev with all defaults.
    #[must_use]
    pub fn on(bdev_name: &str) -> Self {
        Self { bdev_name: bdev_name.to_owned(), ..Self::default() }
    }

    pub(super) fn identity(&self, bdev: Uuid) -> Result<Identity, TargetError> {
        refuse("no_auto_visible", self.no_auto_visible)?;
        let uuid = match &self.uuid {
            None => bdev,
            Some(text) => Uuid::parse_str(text).map_err(|error| TargetError::Invalid {
                parameter: "uuid",
                value: format!("{text:?}"),
                allowed: format!("a UUID ({error})"),
            })?,
        };
        // ESXi takes a namespace for a disk only where it has an NGUID or EUI64.
        let nguid = match &self.nguid {
            None => *uuid.as_bytes(),
            Some(text) => hex("nguid", text)?,
        };
        let eui64 = match &self.eui64 {
            None => [0; 8],
            Some(text) => hex("eui64", text)?,
        };
        Ok(Identity { uuid, nguid, eui64 })
    }
}

/// Hexadecimal digits, hyphens between them allowed, as `N` bytes.
fn hex<const N: usize>(parameter: &'static str, text: &str) -> Result<[u8; N], TargetError> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .unwrap_or_default();
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        let allowed = format!("{} hexadecimal digits", 2 * N);
        return Err(TargetError::Invalid { parameter, value: format!("{text:?}"), allowed });
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |value, digit| (value << 4) | digit);
    }
    Ok(bytes)
}

/// The `listen_address` object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenAddress {
    /// Transport type: "TCP".
    pub trtype: String,
    /// Address family: "IPv4" or "IPv6"; follows from the address where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adrfam: Option<String>,
    /// Address.
    pub traddr: String,
    /// Port: 0 picks a free one, none stands for the discovery port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trsvcid: Option<String>,
}

impl ListenAddress {
    /// An address and port of TCP.
    #[must_use]
    pub fn tcp(addr: SocketAddr) -> Self {
        Self {
            trtype: "TCP".to_owned(),
            adrfam: Some(if addr.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned()),
            traddr: addr.ip().to_string(),
            trsvcid: Some(addr.port().to_string()),
        }
    }

    pub(super) fn addr(&self) -> Result<SocketAddr, TargetError> {
        let invalid = |parameter, value: &str, allowed: &str| TargetError::Invalid {
            parameter,
            value: format!("{value:?}"),
            allowed: allowed.to_owned(),
        };
        if !self.trtype.eq_ignore_ascii_case("TCP") {
            return Err(invalid("trtype", &self.trtype, "\"TCP\""));
        }
        let ip: IpAddr =
            self.traddr.parse().map_err(|_| invalid("traddr", &self.traddr, "an IPv4 or IPv6 address"))?;
        let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
        if let Some(adrfam) = self.adrfam.as_ref().filter(|adrfam| !adrfam.eq_ignore_ascii_case(family)) {
            return Err(invalid("adrfam", adrfam, "the family of traddr"));
        }
        let port = match &self.trsvcid {
            None => DISCOVERY_PORT_TCP,
            Some(text) => text.parse().map_err(|_| invalid("trsvcid", text, "a port: \"0\" to \"65535\""))?,
        };
        Ok(SocketAddr::new(ip, port))
    }
}
