//! `penstock nvme`.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use crate::cli::args::{NvmeAttach, NvmeCommand};
use crate::cli::client::Client;
use crate::cli::table::{Table, elements, number_of, text_of};
use crate::cli::{CliError, Out};

pub(crate) fn run(client: &mut Client, out: &mut Out<'_>, command: NvmeCommand) -> Result<(), CliError> {
    match command {
        NvmeCommand::List => {
            let value = client.call("bdev_nvme_get_controllers", json!({}))?;
            out.show(&value, list)
        }
        NvmeCommand::Attach(attach) => {
            let value = client.call("bdev_nvme_attach_controller", params_of(attach))?;
            out.show(&value, |names| {
                let names: Vec<&str> = elements(names).iter().filter_map(Value::as_str).collect();
                format!("bdevs: {}\n", if names.is_empty() { "none".to_owned() } else { names.join(" ") })
            })
        }
        NvmeCommand::Detach { name, path } => {
            let mut params = json!({"name": name});
            if let (Some(path), Some(members)) = (path, params.as_object_mut()) {
                members.extend(address(path));
            }
            done(client, out, "bdev_nvme_detach_controller", params)
        }
        NvmeCommand::Reset { name, cntlid } => {
            let mut params = json!({"name": name});
            if let (Some(cntlid), Some(members)) = (cntlid, params.as_object_mut()) {
                members.insert("cntlid".to_owned(), json!(cntlid));
            }
            done(client, out, "bdev_nvme_reset_controller", params)
        }
        NvmeCommand::Health { name } => {
            let value = client.call("bdev_nvme_get_controller_health_info", json!({"name": name}))?;
            out.show(&value, members)
        }
        NvmeCommand::Errors { name } => {
            let value = client.call("bdev_nvme_get_controller_error_log", json!({"name": name}))?;
            out.show(&value, errors)
        }
        NvmeCommand::Paths { bdev } => {
            let params = bdev.map_or_else(|| json!({}), |bdev| json!({"name": bdev}));
            let value = client.call("bdev_nvme_get_io_paths", params)?;
            out.show(&value, paths)
        }
        NvmeCommand::Prefer { bdev, cntlid } => {
            done(client, out, "bdev_nvme_set_preferred_path", json!({"name": bdev, "cntlid": cntlid}))
        }
        NvmeCommand::Policy { bdev, policy, selector, rr_min_io } => {
            let mut params = json!({"name": bdev, "policy": policy});
            let more =
                [("selector", selector.map(|name| json!(name))), ("rr_min_io", rr_min_io.map(|n| json!(n)))];
            if let Some(members) = params.as_object_mut() {
                members.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
            }
            done(client, out, "bdev_nvme_set_multipath_policy", params)
        }
    }
}

fn done(client: &mut Client, out: &mut Out<'_>, method: &str, params: Value) -> Result<(), CliError> {
    client.call(method, params)?;
    out.line("done")
}

fn address(at: SocketAddr) -> Map<String, Value> {
    let family = if at.is_ipv4() { "IPv4" } else { "IPv6" };
    let members = [
        ("trtype", "TCP".to_owned()),
        ("adrfam", family.to_owned()),
        ("traddr", at.ip().to_string()),
        ("trsvcid", at.port().to_string()),
    ];
    members.into_iter().map(|(name, text)| (name.to_owned(), json!(text))).collect()
}

fn params_of(attach: NvmeAttach) -> Value {
    let mut params = match attach.at.parse() {
        Ok(at) => address(at),
        Err(_) => [("trtype", "PCIe"), ("traddr", attach.at.as_str())]
            .into_iter()
            .map(|(name, text)| (name.to_owned(), json!(text)))
            .collect(),
    };
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            params.insert(name.to_owned(), value);
        }
    };
    put("name", Some(json!(attach.name)));
    put("subnqn", attach.nqn.map(|text| json!(text)));
    put("hostnqn", attach.hostnqn.map(|text| json!(text)));
    put("hdgst", attach.hdgst.then_some(Value::Bool(true)));
    put("ddgst", attach.ddgst.then_some(Value::Bool(true)));
    put("multipath", attach.multipath.map(|text| json!(text)));
    put("ctrlr_loss_timeout_sec", attach.ctrlr_loss_timeout.map(|seconds| json!(seconds)));
    put("reconnect_delay_sec", attach.reconnect_delay.map(|seconds| json!(seconds)));
    put("fast_io_fail_timeout_sec", attach.fast_io_fail_timeout.map(|seconds| json!(seconds)));
    put("dhchap_key", attach.dhchap_key.map(|text| json!(text)));
    put("dhchap_ctrlr_key", attach.dhchap_ctrlr_key.map(|text| json!(text)));
    put("iommu", attach.iommu.map(|text| json!(text)));
    Value::Object(params)
}

fn list(value: &Value) -> String {
    let mut table = Table::new(&["CONTROLLER", "AT", "CNTLID", "STATE", "MODEL", "SERIAL", "NAMESPACES"], 7);
    for controller in elements(value) {
        for one in controller.get("ctrlrs").map(elements).unwrap_or_default() {
            let at = one.get("trid").cloned().unwrap_or_default();
            let data = one.get("ctrlr_data").cloned().unwrap_or_default();
            let namespaces = one.get("namespaces").map(elements).unwrap_or_default();
            let bdevs: Vec<String> = namespaces
                .iter()
                .map(|ns| match ns.get("bdev").and_then(Value::as_str) {
                    Some(bdev) => bdev.to_owned(),
                    None => format!("{} refused", number_of(ns, "nsid")),
                })
                .collect();
            table.row([
                text_of(controller, "name"),
                place(&at),
                number_of(one, "cntlid").to_string(),
                text_of(one, "state"),
                text_of(&data, "model_number"),
                text_of(&data, "serial_number"),
                bdevs.join(" "),
            ]);
        }
    }
    table.text("no controllers")
}

fn paths(value: &Value) -> String {
    let mut table = Table::new(&["BDEV", "REACTOR", "CNTLID", "AT", "CONNECTED", "ANA STATE", "IN USE"], 7);
    for group in value.get("poll_groups").map(elements).unwrap_or_default() {
        for path in group.get("io_paths").map(elements).unwrap_or_default() {
            let at = path.get("transport").cloned().unwrap_or_default();
            let yes = |name: &str| if path.get(name) == Some(&json!(true)) { "yes" } else { "no" }.to_owned();
            table.row([
                text_of(path, "bdev_name"),
                text_of(group, "thread"),
                number_of(path, "cntlid").to_string(),
                place(&at),
                yes("connected"),
                text_of(path, "ana_state"),
                yes("current"),
            ]);
        }
    }
    table.text("no paths")
}

fn errors(value: &Value) -> String {
    let mut table = Table::new(&["COUNT", "QUEUE", "CID", "NSID", "LBA", "STATUS"], 6);
    for entry in value.get("entries").map(elements).unwrap_or_default() {
        table.row([
            number_of(entry, "error_count").to_string(),
            number_of(entry, "sqid").to_string(),
            number_of(entry, "cid").to_string(),
            number_of(entry, "nsid").to_string(),
            number_of(entry, "lba").to_string(),
            text_of(entry, "status"),
        ]);
    }
    table.text("no errors")
}

fn members(value: &Value) -> String {
    let mut table = Table::new(&["WHAT", "VALUE"], 2);
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        table.row([name.clone(), text]);
    }
    table.text("nothing")
}

/// Where a controller is, in one word.
fn place(trid: &Value) -> String {
    let (traddr, port) = (text_of(trid, "traddr"), text_of(trid, "trsvcid"));
    match trid.get("trsvcid") {
        None => traddr,
        Some(_) if traddr.contains(':') => format!("[{traddr}]:{port}"),
        Some(_) => format!("{traddr}:{port}"),
    }
}
