//! `penstock`: the tool for people. Everything it does goes over the control socket, but for what it does to
//! disks that no daemon has open.

pub mod args;
pub mod bdev;
pub mod client;
pub mod fsck;
pub(crate) mod histogram;
pub mod iscsi;
pub mod node;
pub mod nvme;
pub mod nvmf;
pub mod pool;
pub(crate) mod table;
pub mod top;
pub mod transfer;
pub mod vdisk;
pub mod vhost;

mod error;

use std::io::{self, Write};

use clap::CommandFactory;
use serde_json::Value;

pub use error::CliError;

use crate::cli::args::{Args, Command, ConfigCommand, Docs};
use crate::cli::client::Client;
use crate::rpc::method;
use penstock_fabric::fsck::CheckOptions;

/// Where the tool writes, and how.
pub(crate) struct Out<'a> {
    pub(crate) writer: &'a mut dyn Write,
    pub(crate) json: bool,
}

impl Out<'_> {
    /// A line of text; nothing with `--json`.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), CliError> {
        if self.json {
            return Ok(());
        }
        writeln!(self.writer, "{text}").map_err(CliError::Output)
    }

    /// A value, as the daemon gave it.
    pub(crate) fn value(&mut self, value: &Value) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        writeln!(self.writer, "{text}").map_err(CliError::Output)
    }

    /// The value with `--json`, else what `table` makes of it.
    pub(crate) fn show(
        &mut self,
        value: &Value,
        table: impl FnOnce(&Value) -> String,
    ) -> Result<(), CliError> {
        if self.json {
            return self.value(value);
        }
        write!(self.writer, "{}", table(value)).map_err(CliError::Output)
    }
}

/// Runs one command.
///
/// # Errors
/// What the daemon refused with, or why it could not be asked.
pub fn run(args: Args, writer: &mut dyn Write) -> Result<(), CliError> {
    let mut out = Out { writer, json: args.json };
    let connect =
        || Client::connect(&args.socket.clone().unwrap_or_else(crate::daemon::options::default_socket));
    match args.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "penstock", &mut script);
            out.writer.write_all(&script).map_err(CliError::Output)
        }
        Command::Docs { page: Docs::Rpc } => {
            let text = method::reference(&crate::methods::table());
            out.writer.write_all(text.as_bytes()).map_err(CliError::Output)
        }
        Command::Rpc { method, params } => {
            let params = match params.as_deref() {
                None => serde_json::json!({}),
                Some(text) => serde_json::from_str(text).map_err(CliError::Params)?,
            };
            let result = connect()?.call_with(&method, &params)?;
            out.value(&result)
        }
        Command::Config(command) => config(&mut connect()?, &mut out, command),
        Command::Status => node::status(&mut connect()?, &mut out),
        Command::Reactor(command) => node::reactor(&mut connect()?, &mut out, command),
        Command::Fsck { disks, data, repair } => fsck::check(&mut out, &disks, CheckOptions { data, repair }),
        Command::Rescue { disks } => fsck::rescue(&mut out, &disks),
        Command::Log => node::log(&mut connect()?, &mut out),
        Command::Shutdown => node::shutdown(&mut connect()?, &mut out),
        Command::Bdev(command) => bdev::run(&mut connect()?, &mut out, command),
        Command::Pool(command) => pool::pool(&mut connect()?, &mut out, command),
        Command::Container(command) => pool::container(&mut connect()?, &mut out, command),
        Command::Vdisk(command) => vdisk::vdisk(&mut connect()?, &mut out, command),
        Command::Snapshot(command) => vdisk::snapshot(&mut connect()?, &mut out, command),
        Command::Import(options) => transfer::import(&mut connect()?, &mut out, options),
        Command::Export(options) => transfer::export(&mut connect()?, &mut out, options),
        Command::Why { vdisk } => vdisk::why(&mut connect()?, &mut out, &vdisk),
        Command::Nvme(command) => nvme::run(&mut connect()?, &mut out, command),
        Command::Nvmf(command) => nvmf::run(&mut connect()?, &mut out, command),
        Command::Iscsi(command) => iscsi::run(&mut connect()?, &mut out, command),
        Command::Vhost(command) => vhost::run(&mut connect()?, &mut out, command),
        Command::Top { interval, count } => top::run(&mut connect()?, out.writer, interval, count),
    }
}

/// Bytes from `64M`, `1G`, `4096`.
pub(crate) fn size_of(text: &str) -> Result<usize, CliError> {
    crate::daemon::options::size("SIZE", text).map_err(|error| CliError::Usage(error.to_string()))
}

fn config(client: &mut Client, out: &mut Out<'_>, command: ConfigCommand) -> Result<(), CliError> {
    match command {
        ConfigCommand::Save => {
            let value = client.call("save_config", serde_json::json!({}))?;
            out.value(&value)
        }
        ConfigCommand::Load { file } => {
            let text = if file.as_os_str() == "-" {
                io::read_to_string(io::stdin())
            } else {
                std::fs::read_to_string(&file)
            };
            let text = text.map_err(|source| CliError::File { path: file.clone(), source })?;
            let params = serde_json::from_str(&text).map_err(CliError::Params)?;
            client.call("load_config", params)?;
            out.line("configuration loaded")
        }
    }
}
