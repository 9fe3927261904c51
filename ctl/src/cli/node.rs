//! `penstock status`, `reactor`, `log`, `shutdown`.

use serde_json::{Value, json};

use crate::cli::args::ReactorCommand;
use crate::cli::client::Client;
use crate::cli::table::{Table, bytes, elements, number_of, text_of};
use crate::cli::{CliError, Out};

pub(crate) fn status(client: &mut Client, out: &mut Out<'_>) -> Result<(), CliError> {
    let version = client.call("spdk_get_version", json!({}))?;
    let reactors = client.call("framework_get_reactors", json!({}))?;
    let bdevs = client.call("bdev_get_bdevs", json!({}))?;
    let subsystems = client.call("nvmf_get_subsystems", json!({}))?;
    let memory = client.call("iobuf_get_stats", json!({}))?;
    let value = json!({
        "version": text_of(&version, "version"),
        "pid": number_of(&reactors, "pid"),
        "reactors": reactors.get("reactors").map_or(0, |list| elements(list).len()),
        "bdevs": elements(&bdevs).len(),
        "nvm_subsystems": elements(&subsystems).iter().filter(|one| text_of(one, "subtype") == "NVMe").count(),
        "memory_mapped_bytes": number_of(&memory, "mapped_bytes"),
        "memory_free_bytes": number_of(&memory, "free_bytes"),
    });
    out.show(&value, |value| {
        format!(
            "{} (pid {})\n{} reactors, {} bdevs, {} NVM subsystems, {} of {} memory for data free\n",
            text_of(value, "version"),
            text_of(value, "pid"),
            text_of(value, "reactors"),
            text_of(value, "bdevs"),
            text_of(value, "nvm_subsystems"),
            bytes(number_of(value, "memory_free_bytes")),
            bytes(number_of(value, "memory_mapped_bytes")),
        )
    })
}

pub(crate) fn reactor(
    client: &mut Client,
    out: &mut Out<'_>,
    command: ReactorCommand,
) -> Result<(), CliError> {
    match command {
        ReactorCommand::List => {
            let value = client.call("framework_get_reactors", json!({}))?;
            out.show(&value, list)
        }
        ReactorCommand::PollMode { mode, reactor, spin_us } => {
            let mut params = json!({"mode": mode});
            if let Some(members) = params.as_object_mut() {
                members.extend(reactor.map(|id| ("reactor".to_owned(), json!(id))));
                members.extend(spin_us.map(|us| ("spin_us".to_owned(), json!(us))));
            }
            client.call("penstock_reactor_set_poll_mode", params)?;
            out.line("done")
        }
    }
}

fn list(value: &Value) -> String {
    let mut table = Table::new(
        &["REACTOR", "CORE", "POLLS", "BUSY", "ASLEEP", "SLEEPS", "MESSAGES", "STALLS", "TASKS"],
        3,
    );
    for reactor in value.get("reactors").map(elements).unwrap_or_default() {
        let total = number_of(reactor, "busy") + number_of(reactor, "idle");
        let share = |member| percent(number_of(reactor, member), total);
        let core = match reactor.get("core") {
            None | Some(Value::Null) => "any".to_owned(),
            Some(core) => core.to_string(),
        };
        let words =
            [text_of(reactor, "reactor"), core, text_of(reactor, "poll_mode"), share("busy"), share("sleep")];
        let numbers = ["sleeps", "messages", "stalls", "tasks"].map(|member| text_of(reactor, member));
        table.row(words.into_iter().chain(numbers));
    }
    table.text("no reactors")
}

/// `part` of `whole`, with one decimal.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

pub(crate) fn log(client: &mut Client, out: &mut Out<'_>) -> Result<(), CliError> {
    let value = client.call("log_get_records", json!({}))?;
    out.show(&value, |value| {
        let mut text = String::new();
        for record in value.get("records").map(elements).unwrap_or_default() {
            text.push_str(record.as_str().unwrap_or_default());
            text.push('\n');
        }
        text
    })
}

pub(crate) fn shutdown(client: &mut Client, out: &mut Out<'_>) -> Result<(), CliError> {
    client.call("penstock_shutdown", json!({}))?;
    out.line("the daemon drains and ends")
}
