//! The discovery service's publication, heard on a wire: the daemon in one network namespace, who asks in another.

#![expect(clippy::indexing_slicing, reason = "a test: the slices are of the length that was received")]

use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use penstock_tests::paths::{self, Scratch};
use penstock_tests::process::Process;
use penstock_tests::{rpc, wait};
use serde_json::json;

/// Set where this program runs as the one who asks.
const ASKS: &str = "PENSTOCK_TEST_ASKS_MDNS";
const DAEMONS: &str = "192.0.2.1";
const ASKERS: &str = "192.0.2.2";
const GROUP: (Ipv4Addr, u16) = (Ipv4Addr::new(224, 0, 0, 251), 5353);

fn ip(args: &str) -> Result<()> {
    let out = Command::new(paths::tool("ip")?).args(args.split(' ')).output()?;
    ensure!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// Two namespaces with a wire between them; gone with the value.
struct Wire([String; 2]);

impl Wire {
    fn lay() -> Result<Self> {
        let pid = std::process::id();
        let wire = Self([format!("pensd{pid}"), format!("pensa{pid}")]);
        let [daemon, asker] = &wire.0;
        for name in [daemon, asker] {
            ip(&format!("netns add {name}")).context("network namespaces take root")?;
        }
        ip(&format!("-n {daemon} link add eth0 type veth peer name eth0 netns {asker}"))?;
        for (name, address) in [(daemon, DAEMONS), (asker, ASKERS)] {
            ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} route add 224.0.0.0/4 dev eth0"))?;
        }
        Ok(wire)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in &self.0 {
            drop(ip(&format!("netns del {name}")));
        }
    }
}

/// A command in a namespace.
fn within(namespace: &str, program: &Path) -> Result<Command> {
    let mut command = Process::command(paths::tool("ip")?)?;
    command.args(["netns", "exec", namespace]).arg(program);
    Ok(command)
}

/// A DNS name as it stands in a message.
fn name(labels: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in labels {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// Asks the group for the discovery services, from a port of its own, and prints what comes (RFC 6762, 6.7).
fn ask() -> Result<()> {
    let socket = UdpSocket::bind((ASKERS, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut query = vec![0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(name(&["_nvme-disc", "_tcp", "local"]));
    query.extend([0, 12, 0, 1]); // PTR, IN
    let mut answer = [0; 9000];
    for _ in 0..20 {
        socket.send_to(&query, GROUP)?;
        if let Ok((len, from)) = socket.recv_from(&mut answer) {
            ensure!(from.ip().to_string() == DAEMONS && from.port() == GROUP.1, "an answer of {from}");
            ensure!(
                answer[..2] == [0x12, 0x34] && answer[2] & 0x80 != 0,
                "no answer but {:x?}",
                &answer[..len]
            );
            let text: String = answer[..len]
                .iter()
                .map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' })
                .collect();
            writeln!(
                std::io::stdout(),
                "ANSWER {text} PORT {}",
                answer[..len].windows(2).any(|two| two == 8009_u16.to_be_bytes())
            )?;
            return Ok(());
        }
    }
    bail!("no answer in ten seconds")
}

#[test]
fn the_discovery_service_is_found_by_who_asks_on_the_wire() -> Result<()> {
    if std::env::var_os(ASKS).is_some() {
        return ask();
    }
    let wire = Wire::lay()?;
    let [daemon_side, askers_side] = &wire.0;
    let scratch = Scratch::new()?;
    let socket = scratch.join("penstock.sock");
    let mut command = within(daemon_side, &paths::program("penstockd")?)?;
    command
        .arg("--socket")
        .arg(&socket)
        .arg("--state")
        .arg(scratch.join("state.json"))
        .args(["--reactors", "1"]);
    let _daemon = Process::start(command, "penstockd")?;
    let call = |method: &str, params| rpc::call(&socket, method, &params);
    wait::until(Duration::from_secs(20), || Ok(call("spdk_get_version", json!(null)).ok()))?;
    call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
    let address = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": DAEMONS, "trsvcid": "8009"});
    let discovery = json!({"nqn": "nqn.2014-08.org.nvmexpress.discovery", "listen_address": address});
    call("nvmf_subsystem_add_listener", discovery)?;
    call("nvmf_publish_mdns_prr", json!({}))?;
    let mut command = within(askers_side, &std::env::current_exe()?)?;
    let out = command
        .args(["--exact", "--nocapture"])
        .arg("the_discovery_service_is_found_by_who_asks_on_the_wire");
    let out = out.env(ASKS, "1").output()?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "{said}");
    for word in ["penstock", "p=tcp", "nqn=nqn.2014-08.org.nvmexpress.discovery", "PORT true"] {
        ensure!(said.contains(word), "the answer lacks {word}: {said}");
    }
    Ok(())
}
