//! Login (RFC 7143, section 6 and 11.12): a machine from the first request to the full feature phase.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use penstock_spec::iscsi::text::{self, Pair};
use penstock_spec::iscsi::{IscsiName, LoginReqHdr, LoginStatus, Stage};

use crate::auth::AuthPolicy;
use crate::chap::{CHALLENGE_LEN, Chap, is_auth_key};
use crate::config::{IscsiOptions, TargetConfig};
use crate::negotiate::{Operational, Say, is_operational};
use crate::sessions::SessionKey;

/// Bytes of keys in one request, over all its PDUs, at most.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// Keys in one login at most.
const KEYS_MAX: usize = 64;
/// Requests in one login at most.
const REQUESTS_MAX: u32 = 32;

/// What a login has to know of its surroundings.
pub(crate) trait Directory {
    /// A target by its name.
    fn target(&self, name: &IscsiName) -> Option<Arc<TargetConfig>>;
    /// Settings.
    fn options(&self) -> &IscsiOptions;
    /// Whether connection `cid` may become one of the session of that name and TSIH.
    ///
    /// # Errors
    /// The status to refuse it with.
    fn may_join(&self, key: &SessionKey, tsih: u16, cid: u16) -> Result<(), LoginStatus>;
    /// What is asked of those who want to discover at a portal group.
    fn discovery_auth(&self, tpgt: u16) -> AuthPolicy;
    /// Whether there is room for one more session, which may take the place of one of the same name.
    fn has_room(&self, key: &SessionKey) -> bool;
    /// An identifier and a challenge that nobody can foresee; `None` when there is no randomness.
    fn random(&self) -> Option<[u8; CHALLENGE_LEN + 1]>;
}

/// What is to be answered to a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// T, CSG and NSG.
    pub(crate) flags: u8,
    /// Keys.
    pub(crate) text: Vec<u8>,
    /// The login is over; the session begins.
    pub(crate) done: bool,
}

/// A login under way.
#[derive(Debug)]
pub(crate) struct Login {
    stage: Option<Stage>,
    text: Vec<u8>,
    seen: Vec<String>,
    requests: u32,
    hdr: LoginReqHdr,
    pub(crate) initiator: Option<IscsiName>,
    pub(crate) alias: String,
    pub(crate) target: Option<Arc<TargetConfig>>,
    target_name: Option<String>,
    pub(crate) discovery: bool,
    pub(crate) agreed: Operational,
    declared: bool,
    identified: bool,
    auth: Option<Chap>,
    redirect: Option<SocketAddr>,
}

impl Login {
    pub(crate) fn new() -> Self {
        Self {
            stage: None,
            text: Vec::new(),
            seen: Vec::new(),
            requests: 0,
            hdr: LoginReqHdr::default(),
            initiator: None,
            alias: String::new(),
            target: None,
            target_name: None,
            discovery: false,
            agreed: Operational::default(),
            declared: false,
            identified: false,
            auth: None,
            redirect: None,
        }
    }

    /// Whether a request has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.requests > 0
    }

    /// The session's name, as far as it is known.
    pub(crate) fn key(&self, tpgt: u16) -> Option<SessionKey> {
        let target = self.target.as_ref().map(|target| target.name);
        Some(SessionKey { initiator: self.initiator?, isid: self.hdr.isid, target, tpgt })
    }

    /// The command window of the session.
    pub(crate) fn window(&self, options: &IscsiOptions) -> u16 {
        let ours = self.target.as_ref().map_or(u16::MAX, |target| target.queue_depth);
        options.max_queue_depth.min(ours).max(1)
    }

    /// The keys that go with the status of a login that is refused: where the target is now.
    pub(crate) fn refusal_keys(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(addr) = self.redirect {
            // Without the tag of the portal group (RFC 7143, 13.8).
            say(&mut out, "TargetAddress", &addr.to_string());
        }
        out
    }

    /// Handles a request that came in at portal group `tpgt` from `addr`.
    ///
    /// # Errors
    /// The status to refuse it with.
    pub(crate) fn request(
        &mut self,
        hdr: &LoginReqHdr,
        data: &[u8],
        tpgt: u16,
        addr: IpAddr,
        directory: &impl Directory,
    ) -> Result<Answer, LoginStatus> {
        let first = self.stage.is_none();
        let csg = self.check_header(hdr)?;
        if self.text.len() + data.len() > TEXT_BYTES_MAX {
            return Err(LoginStatus::OUT_OF_RESOURCES);
        }
        self.text.extend_from_slice(data);
        if hdr.flags & LoginReqHdr::CONTINUE != 0 {
            return Ok(Answer { flags: csg.bits() << 2, ..Answer::default() });
        }
        let keys = std::mem::take(&mut self.text);
        let mut out = Vec::new();
        let pairs: Vec<Pair<'_>> =
            text::pairs(&keys).collect::<Result<_, _>>().map_err(|_| LoginStatus::INITIATOR_ERROR)?;
        self.identify(&pairs, tpgt, addr, directory, &mut out)?;
        if csg == Stage::Security {
            let auth = self.auth.as_mut().ok_or(LoginStatus::TARGET_ERROR)?;
            auth.request(&pairs, || directory.random(), &mut out)?;
        } else if first {
            self.auth.as_ref().ok_or(LoginStatus::TARGET_ERROR)?.leave()?;
        }
        for pair in &pairs {
            self.key_value(*pair, csg, directory.options(), &mut out)?;
        }
        // Until the initiator has proved itself there is no next stage, whatever it asks for.
        let wants = hdr.flags & LoginReqHdr::TRANSIT != 0;
        let transit =
            wants && !(csg == Stage::Security && self.auth.as_ref().is_some_and(Chap::is_under_way));
        if transit && csg == Stage::Security {
            self.auth.as_ref().ok_or(LoginStatus::TARGET_ERROR)?.leave()?;
        }
        let next = if transit { hdr.nsg().ok_or(LoginStatus::INVALID_REQUEST)? } else { csg };
        if csg == Stage::Operational && !self.declared {
            self.declared = true;
            let len = directory.options().max_recv_data_segment_length;
            self.agreed.data_to_target = len;
            say(&mut out, "MaxRecvDataSegmentLength", &len.to_string());
        }
        self.stage = Some(next);
        let done = next == Stage::FullFeature;
        if done {
            self.agreed.finish();
            self.check_end(tpgt, directory)?;
        }
        let transit_bits = if transit { LoginReqHdr::TRANSIT | next.bits() } else { 0 };
        Ok(Answer { flags: transit_bits | (csg.bits() << 2), text: out, done })
    }

    /// What holds only when everything is negotiated.
    fn check_end(&self, tpgt: u16, directory: &impl Directory) -> Result<(), LoginStatus> {
        if let Some(target) = &self.target {
            let lacks_header = target.header_digest && !self.agreed.header_digest;
            if lacks_header || (target.data_digest && !self.agreed.data_digest) {
                return Err(LoginStatus::INITIATOR_ERROR);
            }
        }
        match self.key(tpgt).is_some_and(|key| directory.has_room(&key)) {
            true => Ok(()),
            false => Err(LoginStatus::OUT_OF_RESOURCES),
        }
    }

    fn check_header(&mut self, hdr: &LoginReqHdr) -> Result<Stage, LoginStatus> {
        self.requests += 1;
        let csg = hdr.csg().filter(|csg| *csg != Stage::FullFeature);
        let csg = csg.ok_or(LoginStatus::INVALID_REQUEST)?;
        if hdr.version_min > 0 {
            return Err(LoginStatus::UNSUPPORTED_VERSION);
        }
        let (transit, continues) =
            (hdr.flags & LoginReqHdr::TRANSIT != 0, hdr.flags & LoginReqHdr::CONTINUE != 0);
        if (transit && continues) || self.requests > REQUESTS_MAX {
            return Err(LoginStatus::INVALID_REQUEST);
        }
        if transit && hdr.nsg().is_none_or(|nsg| nsg <= csg) {
            return Err(LoginStatus::INVALID_REQUEST);
        }
        match self.stage {
            None => self.hdr = *hdr,
            Some(stage) => {
                let same = (hdr.isid, hdr.tsih, hdr.cid, hdr.itt)
                    == (self.hdr.isid, self.hdr.tsih, self.hdr.cid, self.hdr.itt);
                if !same || stage != csg {
                    return Err(LoginStatus::INVALID_REQUEST);
                }
            }
        }
        self.stage = Some(csg);
        Ok(csg)
    }

    /// Who wants what: decided with the first whole request.
    fn identify(
        &mut self,
        pairs: &[Pair<'_>],
        tpgt: u16,
        addr: IpAddr,
        directory: &impl Directory,
        out: &mut Vec<u8>,
    ) -> Result<(), LoginStatus> {
        if std::mem::replace(&mut self.identified, true) {
            return Ok(());
        }
        let find = |key: &str| pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value);
        let name = find("InitiatorName").ok_or(LoginStatus::MISSING_PARAMETER)?;
        let initiator: IscsiName = name.parse().map_err(|_| LoginStatus::INITIATOR_ERROR)?;
        self.initiator = Some(initiator);
        self.alias = find("InitiatorAlias").unwrap_or_default().to_owned();
        self.discovery = match find("SessionType") {
            None | Some("Normal") => false,
            Some("Discovery") => true,
            Some(_) => return Err(LoginStatus::SESSION_TYPE_UNSUPPORTED),
        };
        if !self.discovery {
            let wanted = find("TargetName").ok_or(LoginStatus::MISSING_PARAMETER)?;
            let name: IscsiName = wanted.parse().map_err(|_| LoginStatus::NOT_FOUND)?;
            let target = directory.target(&name).ok_or(LoginStatus::NOT_FOUND)?;
            if !target.maps.iter().any(|(portals, _)| portals.tag == tpgt) {
                return Err(LoginStatus::NOT_FOUND);
            }
            if !target.admits(tpgt, &initiator, addr) {
                return Err(LoginStatus::AUTHORIZATION_FAILURE);
            }
            self.redirect = target.redirects.get(&tpgt).copied();
            if self.redirect.is_some() {
                return Err(LoginStatus::MOVED_TEMPORARILY);
            }
            self.target_name = Some(wanted.to_owned());
            if !target.alias.is_empty() {
                say(out, "TargetAlias", &target.alias);
            }
            self.auth = Some(Chap::new(target.auth.clone()));
            self.target = Some(target);
            say(out, "TargetPortalGroupTag", &tpgt.to_string());
        } else {
            self.auth = Some(Chap::new(directory.discovery_auth(tpgt)));
        }
        let tsih = self.hdr.tsih.get();
        if tsih != 0 {
            let key = self.key(tpgt).ok_or(LoginStatus::NO_SESSION)?;
            directory.may_join(&key, tsih, self.hdr.cid.get())?;
            self.agreed.joins = true;
        }
        Ok(())
    }

    fn key_value(
        &mut self,
        pair: Pair<'_>,
        csg: Stage,
        options: &IscsiOptions,
        out: &mut Vec<u8>,
    ) -> Result<(), LoginStatus> {
        let Pair { key, value } = pair;
        // A key is negotiated once per login (7.3).
        if self.seen.len() >= KEYS_MAX || self.seen.iter().any(|seen| seen == key) {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        self.seen.push(key.to_owned());
        // An answer to what we never offered.
        if matches!(value, "Reject" | "Irrelevant" | "NotUnderstood") {
            return Ok(());
        }
        match key {
            "InitiatorName" | "InitiatorAlias" | "TargetName" | "SessionType" => return Ok(()),
            // The authentication has seen to them.
            _ if is_auth_key(key) && csg == Stage::Security => return Ok(()),
            _ => {}
        }
        if !is_operational(key) || csg != Stage::Operational {
            // CHAP keys without CHAP, operational keys in the security stage.
            let known = self.agreed.clone().take(pair, options, self.discovery) != Say::NotUnderstood;
            if known || !is_operational(key) {
                return Err(LoginStatus::INITIATOR_ERROR);
            }
            say(out, key, "NotUnderstood");
            return Ok(());
        }
        let required = self.target.as_ref().is_some_and(|target| match key {
            "HeaderDigest" => target.header_digest,
            "DataDigest" => target.data_digest,
            _ => false,
        });
        // Of what the initiator would take, the one that the target insists on.
        let insisted = required && value.split(',').any(|offer| offer == "CRC32C");
        let pair = if insisted { Pair { key, value: "CRC32C" } } else { pair };
        match self.agreed.take(pair, options, self.discovery) {
            Say::Value(value) => say(out, key, &value),
            Say::Nothing => {}
            Say::Reject => say(out, key, "Reject"),
            Say::Irrelevant => say(out, key, "Irrelevant"),
            Say::NotUnderstood => say(out, key, "NotUnderstood"),
        }
        Ok(())
    }
}

/// Appends `key=value` and its NUL.
pub(crate) fn say(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}
