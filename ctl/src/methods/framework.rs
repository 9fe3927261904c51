//! Methods about the daemon itself: versions, methods, subsystems, initialisation, its end, notifications.

use std::rc::Rc;

use serde_json::{Value, json};

use crate::daemon::{App, events};
use crate::methods::config;
use crate::params;
use crate::rpc::error::errno;
use crate::rpc::method::Phase;
use crate::rpc::param::Nothing;
use crate::rpc::{Kind, RpcError, Table};

params! {
    /// Of `rpc_get_methods`.
    GetMethods {
        /// Only methods that may be called now. Default: false.
        current: Option<bool>,
        /// Also deprecated names; there are none. Default: false.
        include_aliases: Option<bool>,
    }
}

params! {
    /// Of `spdk_kill_instance`.
    Kill {
        /// SIGINT or SIGTERM: drain and end. SIGKILL: end at once.
        sig_name: String,
    }
}

params! {
    /// Of `notify_get_notifications`.
    GetNotes {
        /// Number of the first notification wanted. Default: 0, the oldest that is kept.
        id: Option<u64>,
        /// How many at most. Default: all.
        max: Option<u64>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .phase(Phase::Any)
        .add("rpc_get_methods", Kind::Read, "Names of the methods, in alphabetic order.", get_methods)
        .add("spdk_get_version", Kind::Read, "Version of the daemon.", get_version)
        .add(
            "framework_get_subsystems",
            Kind::Read,
            "The subsystems in the order of initialisation, and which others each stands on.",
            get_subsystems,
        )
        .add(
            "framework_wait_init",
            Kind::Read,
            "Answers true when the daemon is initialised; until then, the answer waits.",
            wait_init,
        )
        .add(
            "spdk_kill_instance",
            Kind::Act,
            "Ends the daemon as the signal would: SIGTERM and SIGINT let I/O under way finish.",
            kill,
        )
        .add("penstock_shutdown", Kind::Act, "Drains and ends the daemon, as SIGTERM does.", shutdown)
        .add("notify_get_types", Kind::Read, "Kinds of notifications.", get_types)
        .add(
            "notify_get_notifications",
            Kind::Read,
            "Notifications from a number on, oldest first; the last 4096 are kept.",
            get_notes,
        )
        .phase(Phase::Startup)
        .add(
            "framework_start_init",
            Kind::Act,
            "Initialises the daemon that was started with --wait-for-rpc: restores its state or configuration.",
            start_init,
        )
        .phase(Phase::Runtime);
}

async fn get_methods(app: Rc<App>, params: GetMethods) -> Result<Value, RpcError> {
    let initialised = app.is_initialised();
    let callable = |phase| match phase {
        Phase::Any => true,
        Phase::Startup => !initialised,
        Phase::Runtime => initialised,
    };
    let all = !params.current.unwrap_or(false);
    let methods = app.table.iter().filter(|method| all || callable(method.phase));
    Ok(methods.map(|method| method.name).collect())
}

async fn get_version(_app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let part = |text: &str| text.parse::<u32>().unwrap_or(0);
    Ok(json!({
        "version": concat!("Penstock v", env!("CARGO_PKG_VERSION")),
        "fields": {
            "major": part(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": part(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": part(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": env!("CARGO_PKG_VERSION_PRE"),
        },
    }))
}

async fn get_subsystems(_app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let subsystems = config::SUBSYSTEMS.iter();
    Ok(subsystems.map(|(name, needs)| json!({"subsystem": name, "depends_on": needs})).collect())
}

async fn wait_init(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let mut stopping = app.stopping();
    tokio::select! {
        () = app.initialised() => Ok(Value::Bool(true)),
        _ = stopping.wait_for(|stop| *stop) => Err(RpcError::internal("the daemon ends before it was initialised")),
    }
}

async fn start_init(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    app.ask_to_start();
    wait_init(app, Nothing {}).await
}

async fn shutdown(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    app.ask_to_stop();
    Ok(Value::Bool(true))
}

async fn kill(app: Rc<App>, params: Kill) -> Result<Value, RpcError> {
    match params.sig_name.trim_start_matches("SIG") {
        "TERM" | "INT" => app.ask_to_stop(),
        "KILL" => {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).map_err(
                |error| RpcError::new(-i64::from(errno::IO), format!("cannot kill this process: {error}")),
            )?;
        }
        _ => {
            let message = format!(
                "spdk_kill_instance: sig_name {:?} is not handled; use SIGINT, SIGTERM or SIGKILL",
                params.sig_name
            );
            return Err(RpcError::invalid_params(message));
        }
    }
    Ok(Value::Bool(true))
}

async fn get_types(_app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(events::TYPES.into_iter().collect())
}

async fn get_notes(app: Rc<App>, params: GetNotes) -> Result<Value, RpcError> {
    let max = params.max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
    let notes = app.notes.since(params.id.unwrap_or(0), max);
    Ok(notes.into_iter().map(|note| json!({"type": note.kind, "ctx": note.object, "id": note.id})).collect())
}
