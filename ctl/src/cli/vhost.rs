//! `penstock vhost`.

use serde_json::{Value, json};

use crate::cli::args::VhostCommand;
use crate::cli::client::Client;
use crate::cli::table::{Table, elements, text_of};
use crate::cli::{CliError, Out};

pub(crate) fn run(client: &mut Client, out: &mut Out<'_>, command: VhostCommand) -> Result<(), CliError> {
    match command {
        VhostCommand::List => {
            let value = client.call("vhost_get_controllers", json!({}))?;
            out.show(&value, list)
        }
        VhostCommand::Create { ctrlr, bdev, cpumask, readonly, packed_ring } => {
            let mut params = json!({
                "ctrlr": ctrlr, "dev_name": bdev, "readonly": readonly, "packed_ring": packed_ring,
            });
            if let (Some(cpumask), Some(members)) = (cpumask, params.as_object_mut()) {
                members.insert("cpumask".to_owned(), json!(cpumask));
            }
            client.call("vhost_create_blk_controller", params)?;
            let made = client.call("vhost_get_controllers", json!({"name": ctrlr}))?;
            let socket = elements(&made).first().map(|one| text_of(one, "socket")).unwrap_or_default();
            out.line(&format!("made {ctrlr}: its socket is {socket}"))
        }
        VhostCommand::Delete { ctrlr } => {
            client.call("vhost_delete_controller", json!({"ctrlr": ctrlr}))?;
            out.line("done")
        }
        VhostCommand::SetCoalescing { ctrlr, delay_base_us, iops_threshold } => {
            let params =
                json!({"ctrlr": ctrlr, "delay_base_us": delay_base_us, "iops_threshold": iops_threshold});
            client.call("vhost_controller_set_coalescing", params)?;
            out.line("done")
        }
    }
}

fn list(value: &Value) -> String {
    let mut table = Table::new(&["CONTROLLER", "BDEV", "SOCKET", "CONNECTED", "QUEUES", "STATE"], 3);
    for controller in elements(value) {
        let block = controller.pointer("/backend_specific/block").cloned().unwrap_or_default();
        let sessions = controller.get("sessions").map(elements).unwrap_or_default();
        let queues: usize =
            sessions.iter().map(|one| one.get("queues").map(elements).unwrap_or_default().len()).sum();
        let is_broken = sessions.iter().any(|one| one.get("broken").is_some_and(Value::is_string));
        let state = if is_broken { "broken by its guest" } else { "ok" };
        table.row([
            text_of(controller, "ctrlr"),
            text_of(&block, "bdev"),
            text_of(controller, "socket"),
            sessions.len().to_string(),
            queues.to_string(),
            state.to_owned(),
        ]);
    }
    table.text("no controllers")
}
