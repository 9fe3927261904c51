//! `penstock nvmf`.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::cli::args::NvmfCommand;
use crate::cli::client::Client;
use crate::cli::table::{Table, elements, text_of};
use crate::cli::{CliError, Out};

pub(crate) fn run(client: &mut Client, out: &mut Out<'_>, command: NvmfCommand) -> Result<(), CliError> {
    match command {
        NvmfCommand::List => {
            let value = client.call("nvmf_get_subsystems", json!({}))?;
            out.show(&value, list)
        }
        NvmfCommand::Create { nqn, serial, any_host, listen, ns, ana } => {
            let mut params = json!({"nqn": nqn, "allow_any_host": any_host, "ana_reporting": ana});
            if let (Some(serial), Some(members)) = (serial, params.as_object_mut()) {
                members.insert("serial_number".to_owned(), json!(serial));
            }
            create(client, &nqn, params, &listen, &ns)?;
            out.line(&format!("made {nqn}"))
        }
        NvmfCommand::Delete { nqn } => done(client, out, "nvmf_delete_subsystem", json!({"nqn": nqn})),
        NvmfCommand::AddNs { nqn, bdev, nsid } => {
            let namespace = json!({"bdev_name": bdev, "nsid": nsid});
            let nsid = client.call("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": namespace}))?;
            out.show(&nsid, |nsid| format!("{bdev} is namespace {nsid} of {nqn}\n"))
        }
        NvmfCommand::RemoveNs { nqn, nsid } => {
            done(client, out, "nvmf_subsystem_remove_ns", json!({"nqn": nqn, "nsid": nsid}))
        }
        NvmfCommand::Listen { nqn, address } => {
            done(client, out, "nvmf_subsystem_add_listener", listener(&nqn, address))
        }
        NvmfCommand::Unlisten { nqn, address } => {
            done(client, out, "nvmf_subsystem_remove_listener", listener(&nqn, address))
        }
        NvmfCommand::Referrals => {
            let value = client.call("nvmf_discovery_get_referrals", json!({}))?;
            out.show(&value, referrals)
        }
        NvmfCommand::Refer { address, nqn, host, tls } => {
            let address = address_of(address);
            let params = json!({"address": address, "subnqn": nqn, "hosts": host, "secure_channel": tls});
            done(client, out, "nvmf_discovery_add_referral", params)
        }
        NvmfCommand::Unrefer { address, nqn } => {
            let params = json!({"address": address_of(address), "subnqn": nqn});
            done(client, out, "nvmf_discovery_remove_referral", params)
        }
        NvmfCommand::Paths { nqn } => {
            let value = client.call("nvmf_subsystem_get_listeners", json!({"nqn": nqn}))?;
            out.show(&value, paths)
        }
        NvmfCommand::Ana { nqn, address, state, group } => {
            let mut params = listener(&nqn, address);
            if let Some(members) = params.as_object_mut() {
                members.insert("ana_state".to_owned(), json!(state));
                members.insert("anagrpid".to_owned(), json!(group));
            }
            done(client, out, "nvmf_subsystem_listener_set_ana_state", params)
        }
        NvmfCommand::AnaGroup { nqn, nsid, group } => {
            let params = json!({"nqn": nqn, "nsid": nsid, "anagrpid": group});
            done(client, out, "nvmf_subsystem_set_ns_ana_group", params)
        }
        NvmfCommand::Allow { nqn, host } => {
            let (method, params) = host_call(&nqn, &host, "nvmf_subsystem_add_host", true);
            done(client, out, method, params)
        }
        NvmfCommand::Deny { nqn, host } => {
            let (method, params) = host_call(&nqn, &host, "nvmf_subsystem_remove_host", false);
            done(client, out, method, params)
        }
        NvmfCommand::Hosts { nqn } => {
            let value = client.call("nvmf_subsystem_get_controllers", json!({"nqn": nqn}))?;
            out.show(&value, hosts)
        }
    }
}

fn done(client: &mut Client, out: &mut Out<'_>, method: &str, params: Value) -> Result<(), CliError> {
    client.call(method, params)?;
    out.line("done")
}

fn create(
    client: &mut Client,
    nqn: &str,
    params: Value,
    listen: &[SocketAddr],
    namespaces: &[String],
) -> Result<(), CliError> {
    let transports = client.call("nvmf_get_transports", json!({}))?;
    if elements(&transports).is_empty() {
        client.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
    }
    client.call("nvmf_create_subsystem", params)?;
    for bdev in namespaces {
        let namespace = json!({"bdev_name": bdev});
        client.call("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": namespace}))?;
    }
    for address in listen {
        client.call("nvmf_subsystem_add_listener", listener(nqn, *address))?;
    }
    Ok(())
}

fn listener(nqn: &str, address: SocketAddr) -> Value {
    json!({"nqn": nqn, "listen_address": address_of(address)})
}

fn address_of(address: SocketAddr) -> Value {
    let adrfam = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let (traddr, trsvcid) = (address.ip().to_string(), address.port().to_string());
    json!({"trtype": "TCP", "adrfam": adrfam, "traddr": traddr, "trsvcid": trsvcid})
}

fn host_call(nqn: &str, host: &str, method: &'static str, allow: bool) -> (&'static str, Value) {
    if host == "any" {
        return ("nvmf_subsystem_allow_any_host", json!({"nqn": nqn, "allow_any_host": allow}));
    }
    (method, json!({"nqn": nqn, "host": host}))
}

fn list(value: &Value) -> String {
    let mut table = Table::new(&["NQN", "ADDRESSES", "HOSTS", "NAMESPACES"], 4);
    for subsystem in elements(value) {
        let list = |member: &str, text: &dyn Fn(&Value) -> String| {
            let all: Vec<String> =
                subsystem.get(member).map(elements).unwrap_or_default().iter().map(text).collect();
            if all.is_empty() { "-".to_owned() } else { all.join(", ") }
        };
        let addresses = list("listen_addresses", &text_of_address);
        let hosts = match subsystem.get("allow_any_host") {
            Some(Value::Bool(true)) => "any".to_owned(),
            _ => list("hosts", &|one| text_of(one, "nqn")),
        };
        let namespaces =
            list("namespaces", &|one| format!("{}={}", text_of(one, "nsid"), text_of(one, "bdev_name")));
        table.row([text_of(subsystem, "nqn"), addresses, hosts, namespaces]);
    }
    table.text("no subsystems")
}

fn referrals(value: &Value) -> String {
    let mut table = Table::new(&["ADDRESS", "NQN", "TLS", "HOSTS"], 4);
    for one in elements(value) {
        let hosts = match one.get("allow_any_host") {
            Some(Value::Bool(true)) => "any".to_owned(),
            _ => one
                .get("hosts")
                .map(elements)
                .unwrap_or_default()
                .iter()
                .map(shown)
                .collect::<Vec<_>>()
                .join(", "),
        };
        let address = one.get("address").map(text_of_address).unwrap_or_default();
        table.row([address, text_of(one, "subnqn"), text_of(one, "secure_channel"), hosts]);
    }
    table.text("no referrals")
}

fn shown(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Groups of the same state are told together: there may be a thousand.
fn paths(value: &Value) -> String {
    let mut table = Table::new(&["ADDRESS", "STATE", "GROUPS"], 3);
    for path in elements(value) {
        let address = path.get("address").map(text_of_address).unwrap_or_default();
        let mut states: Vec<(String, Vec<u64>)> = Vec::new();
        for one in path.get("ana_states").map(elements).unwrap_or_default() {
            let (state, group) = (text_of(one, "ana_state"), one.get("ana_group").and_then(Value::as_u64));
            match states.iter_mut().find(|(known, _)| *known == state) {
                Some((_, groups)) => groups.extend(group),
                None => states.push((state, group.into_iter().collect())),
            }
        }
        if states.is_empty() {
            table.row([address, "-".to_owned(), "-".to_owned()]);
            continue;
        }
        for (state, groups) in states {
            table.row([address.clone(), state, ranges(&groups)]);
        }
    }
    table.text("nobody can reach it")
}

/// Numbers in increasing order, like 1-3, 7.
fn ranges(numbers: &[u64]) -> String {
    let mut text: Vec<String> = Vec::new();
    for run in numbers.chunk_by(|one, next| one + 1 == *next) {
        match run {
            [one] => text.push(one.to_string()),
            [first, .., last] => text.push(format!("{first}-{last}")),
            [] => {}
        }
    }
    text.join(", ")
}

fn text_of_address(one: &Value) -> String {
    match text_of(one, "adrfam").as_str() {
        "IPv6" => format!("[{}]:{}", text_of(one, "traddr"), text_of(one, "trsvcid")),
        _ => format!("{}:{}", text_of(one, "traddr"), text_of(one, "trsvcid")),
    }
}

fn hosts(value: &Value) -> String {
    let mut table = Table::new(&["HOST", "HOST ID", "KIND", "CNTLID", "QUEUES"], 3);
    for controller in elements(value) {
        table.row(
            ["hostnqn", "hostid", "cntrltype", "cntlid", "num_io_qpairs"]
                .map(|member| text_of(controller, member)),
        );
    }
    table.text("nobody is connected")
}
