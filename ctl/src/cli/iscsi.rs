//! `penstock iscsi`.

use std::io::BufRead;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cli::args::IscsiCommand;
use crate::cli::client::Client;
use crate::cli::table::{Table, elements, number_of, text_of};
use crate::cli::{CliError, Out, histogram};

pub(crate) fn run(client: &mut Client, out: &mut Out<'_>, command: IscsiCommand) -> Result<(), CliError> {
    match command {
        IscsiCommand::List => show(client, out, "iscsi_get_target_nodes", list),
        IscsiCommand::Portals => show(client, out, "iscsi_get_portal_groups", portals),
        IscsiCommand::Initiators => show(client, out, "iscsi_get_initiator_groups", initiators),
        IscsiCommand::Secrets => show(client, out, "iscsi_get_auth_groups", secrets),
        IscsiCommand::Sessions => show(client, out, "iscsi_get_connections", sessions),
        IscsiCommand::Create { name, listen, lun, initiator, netmask } => {
            create(client, &name, &listen, &lun, (&initiator, &netmask))?;
            out.line(&format!("made {name}"))
        }
        IscsiCommand::Delete { name } => done(client, out, "iscsi_delete_target_node", json!({"name": name})),
        IscsiCommand::AddLun { name, bdev, lun, initiator_group } => {
            let lun = lun.map_or(-1, i32::from);
            let params = json!({"name": name, "bdev_name": bdev, "lun_id": lun, "ig_tags": initiator_group});
            let lun = client.call("iscsi_target_node_add_lun", params)?;
            out.show(&lun, |lun| format!("{bdev} is LUN {lun} of {name}\n"))
        }
        IscsiCommand::RemoveLun { name, lun } => {
            done(client, out, "iscsi_target_node_remove_lun", json!({"name": name, "lun_id": lun}))
        }
        IscsiCommand::AddSecret { group, user, muser } => add_secret(client, out, group, &user, muser),
        IscsiCommand::RemoveSecret { group, user } => {
            done(client, out, "iscsi_auth_group_remove_secret", json!({"tag": group, "user": user}))
        }
        IscsiCommand::Auth { name, group, mutual } => {
            let require = group != 0;
            let params = json!({"name": name, "chap_group": group, "require_chap": require,
                "mutual_chap": mutual});
            done(client, out, "iscsi_target_node_set_auth", params)
        }
        IscsiCommand::Redirect { name, portal_group, address } => {
            let mut params = json!({"name": name, "pg_tag": portal_group});
            if let (Some(address), Some(members)) = (address, params.as_object_mut()) {
                members.insert("redirect_host".to_owned(), json!(address.ip().to_string()));
                members.insert("redirect_port".to_owned(), json!(address.port().to_string()));
            }
            done(client, out, "iscsi_target_node_set_redirect", params)
        }
        IscsiCommand::Logout { name, portal_group } => {
            let params = json!({"name": name, "pg_tag": portal_group});
            done(client, out, "iscsi_target_node_request_logout", params)
        }
        IscsiCommand::Histogram(command) => histogram::run(client, out, "iscsi", command),
    }
}

fn show(
    client: &mut Client,
    out: &mut Out<'_>,
    method: &str,
    table: impl FnOnce(&Value) -> String,
) -> Result<(), CliError> {
    let value = client.call(method, json!({}))?;
    out.show(&value, table)
}

fn done(client: &mut Client, out: &mut Out<'_>, method: &str, params: Value) -> Result<(), CliError> {
    client.call(method, params)?;
    out.line("done")
}

/// Makes a target and what it needs; what is there already and fits is used.
fn create(
    client: &mut Client,
    name: &str,
    listen: &[SocketAddr],
    bdevs: &[String],
    (initiators, netmasks): (&[String], &[String]),
) -> Result<(), CliError> {
    let mut tags = Vec::new();
    for address in listen {
        tags.push(portal_group(client, *address)?);
    }
    tags.dedup();
    let any = |list: &[String]| if list.is_empty() { vec!["ANY".to_owned()] } else { list.to_vec() };
    let group = initiator_group(client, &any(initiators), &any(netmasks))?;
    let luns: Vec<Value> =
        (0_u16..).zip(bdevs).map(|(lun, bdev)| json!({"bdev_name": bdev, "lun_id": lun})).collect();
    let maps: Vec<Value> = tags.iter().map(|tag| json!({"pg_tag": tag, "ig_tag": group})).collect();
    let params = json!({"name": name, "alias_name": "", "luns": luns, "pg_ig_maps": maps});
    client.call("iscsi_create_target_node", params)?;
    Ok(())
}

/// The tag of the portal group that has an address.
fn portal_group(client: &mut Client, address: SocketAddr) -> Result<u64, CliError> {
    let groups = client.call("iscsi_get_portal_groups", json!({}))?;
    let portal = json!({"host": address.ip().to_string(), "port": address.port().to_string()});
    let has = |group: &&Value| group.get("portals").map(elements).unwrap_or_default().contains(&portal);
    if let Some(known) = elements(&groups).iter().find(has) {
        return Ok(number_of(known, "tag"));
    }
    let tag = free_tag(&groups);
    client.call("iscsi_create_portal_group", json!({"tag": tag, "portals": [portal]}))?;
    Ok(tag)
}

/// The tag of the initiator group that says just that.
fn initiator_group(client: &mut Client, names: &[String], masks: &[String]) -> Result<u64, CliError> {
    let groups = client.call("iscsi_get_initiator_groups", json!({}))?;
    let same = |group: &&Value| {
        group.get("initiators") == Some(&json!(names)) && group.get("netmasks") == Some(&json!(masks))
    };
    if let Some(known) = elements(&groups).iter().find(same) {
        return Ok(number_of(known, "tag"));
    }
    let tag = free_tag(&groups);
    let params = json!({"tag": tag, "initiators": names, "netmasks": masks});
    client.call("iscsi_create_initiator_group", params)?;
    Ok(tag)
}

fn free_tag(groups: &Value) -> u64 {
    let used: Vec<u64> = elements(groups).iter().map(|group| number_of(group, "tag")).collect();
    (1..).find(|tag| !used.contains(tag)).unwrap_or(0)
}

fn add_secret(
    client: &mut Client,
    out: &mut Out<'_>,
    group: u32,
    user: &str,
    muser: Option<String>,
) -> Result<(), CliError> {
    let mut lines = std::io::stdin().lock().lines();
    let mut line = || {
        let read = lines.next().transpose();
        read.map(Option::unwrap_or_default)
            .map_err(|source| CliError::File { path: PathBuf::from("-"), source })
    };
    let mut params = json!({"tag": group, "user": user, "secret": line()?});
    if let (Some(muser), Some(members)) = (muser, params.as_object_mut()) {
        members.insert("muser".to_owned(), json!(muser));
        members.insert("msecret".to_owned(), json!(line()?));
    }
    let groups = client.call("iscsi_get_auth_groups", json!({}))?;
    if !elements(&groups).iter().any(|known| number_of(known, "tag") == u64::from(group)) {
        client.call("iscsi_create_auth_group", json!({"tag": group}))?;
    }
    done(client, out, "iscsi_auth_group_add_secret", params)
}

/// The members of a list as text, or a dash.
fn joined(value: &Value, member: &str, text: impl Fn(&Value) -> String) -> String {
    let all: Vec<String> = value.get(member).map(elements).unwrap_or_default().iter().map(text).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

fn list(value: &Value) -> String {
    let mut table = Table::new(&["NAME", "PORTALS:INITIATORS", "AUTH", "LUNS"], 4);
    for target in elements(value) {
        let maps = joined(target, "pg_ig_maps", |map| {
            format!("{}:{}", text_of(map, "pg_tag"), text_of(map, "ig_tag"))
        });
        let luns =
            joined(target, "luns", |lun| format!("{}={}", text_of(lun, "lun_id"), text_of(lun, "bdev_name")));
        let is = |member: &str| target.get(member) == Some(&Value::Bool(true));
        let auth = match (is("require_chap"), is("mutual_chap"), number_of(target, "chap_group")) {
            (true, true, group) => format!("mutual CHAP ({group})"),
            (true, false, group) => format!("CHAP ({group})"),
            (false, _, 0) => "-".to_owned(),
            (false, _, group) => format!("CHAP or none ({group})"),
        };
        table.row([text_of(target, "name"), maps, auth, luns]);
    }
    table.text("no targets")
}

fn portals(value: &Value) -> String {
    let mut table = Table::new(&["TAG", "ADDRESSES", "STATE"], 3);
    for group in elements(value) {
        let addresses = joined(group, "portals", |portal| {
            let (host, port) = (text_of(portal, "host"), text_of(portal, "port"));
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        });
        let is = |member: &str| group.get(member) == Some(&Value::Bool(true));
        let state = match (is("started"), is("private")) {
            (false, _) => "waiting",
            (true, true) => "private",
            (true, false) => "public",
        };
        table.row([text_of(group, "tag"), addresses, state.to_owned()]);
    }
    table.text("no portal groups")
}

fn initiators(value: &Value) -> String {
    let mut table = Table::new(&["TAG", "INITIATORS", "NETWORKS"], 3);
    for group in elements(value) {
        let text = |one: &Value| one.as_str().unwrap_or("?").to_owned();
        table.row([
            text_of(group, "tag"),
            joined(group, "initiators", text),
            joined(group, "netmasks", text),
        ]);
    }
    table.text("no initiator groups")
}

fn secrets(value: &Value) -> String {
    let mut table = Table::new(&["GROUP", "USER", "TARGET'S USER"], 3);
    for group in elements(value) {
        for secret in group.get("secrets").map(elements).unwrap_or_default() {
            table.row([text_of(group, "tag"), text_of(secret, "user"), text_of(secret, "muser")]);
        }
    }
    table.text("no secrets")
}

fn sessions(value: &Value) -> String {
    let mut table = Table::new(&["INITIATOR", "FROM", "TARGET", "STATE", "REACTOR", "PORTALS", "TSIH"], 5);
    for one in elements(value) {
        table.row(
            [
                "initiator_name",
                "initiator_addr",
                "target_node_name",
                "state",
                "thread_name",
                "portal_group_tag",
                "tsih",
            ]
            .map(|member| text_of(one, member)),
        );
    }
    table.text("nobody is connected")
}
