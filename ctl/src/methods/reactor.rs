//! Methods about the reactors: SPDK's views of reactors and threads (one thread on each), and how they poll.

use std::rc::Rc;

use penstock_reactor::{Cx, PollMode, ReactorHandle, mem};
use serde_json::{Value, json};

use crate::daemon::App;
use crate::params;
use crate::rpc::param::Nothing;
use crate::rpc::{Kind, RpcError, Table};

/// Ticks are nanoseconds.
pub(crate) const TICK_RATE: u64 = 1_000_000_000;

params! {
    /// Of `penstock_reactor_set_poll_mode`.
    SetPollMode {
        /// Which reactor. Default: all.
        reactor: Option<u32>,
        /// adaptive: sleep when nothing comes; busy: poll for ever.
        mode: String,
        /// With adaptive: microseconds of polling in vain before it sleeps. Default: 1000.
        spin_us: Option<u64>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "framework_get_reactors",
            Kind::Read,
            "The reactors: cores, and nanoseconds (tick_rate 1e9) busy, idle and asleep.",
            get_reactors,
        )
        .add(
            "thread_get_stats",
            Kind::Read,
            "What each reactor's thread did with its time, in nanoseconds.",
            get_stats,
        )
        .add(
            "thread_get_pollers",
            Kind::Read,
            "The pollers of each reactor and how often they ran.",
            get_pollers,
        )
        .add(
            "iobuf_get_stats",
            Kind::Read,
            "Memory for data: bytes mapped and free, requests that found none.",
            get_memory,
        )
        .add(
            "penstock_reactor_set_poll_mode",
            Kind::Change,
            "Changes what a reactor does when it is idle, from its next turn on.",
            set_poll_mode,
        );
}

/// The name of a way to poll.
pub(crate) fn mode_name(mode: PollMode) -> &'static str {
    match mode {
        PollMode::Adaptive { .. } => "adaptive",
        PollMode::Busy => "busy",
    }
}

/// SPDK's form of a set of one core.
fn core_mask(core: Option<u32>) -> String {
    match core {
        Some(core) => format!("{:X}", 1_u128.checked_shl(core).unwrap_or(0)),
        None => "any".to_owned(),
    }
}

fn thread_name(reactor: &ReactorHandle) -> String {
    format!("reactor_{}", reactor.id())
}

async fn get_reactors(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let reactors = app.reactors.iter().map(|reactor| {
        let stats = reactor.stats();
        let spin_us = match reactor.poll_mode() {
            PollMode::Adaptive { spin_ns } => Some(spin_ns / 1000),
            PollMode::Busy => None,
        };
        json!({
            "lcore": reactor.core().unwrap_or(reactor.id().0),
            "reactor": reactor.id().0,
            "core": reactor.core(),
            "busy": stats.busy_ns.read(),
            "idle": stats.idle_ns.read(),
            "sleep": stats.sleep_ns.read(),
            "turns": stats.turns.read(),
            "sleeps": stats.sleeps.read(),
            "messages": stats.messages.read(),
            "stalls": stats.stalls.read(),
            "stall_ns_max": stats.stall_ns_max.read(),
            "tasks": reactor.tasks_alive(),
            "poll_mode": mode_name(reactor.poll_mode()),
            "spin_us": spin_us,
            "in_interrupt": false,
            "lw_threads": [{
                "name": thread_name(reactor),
                "id": reactor.id().0 + 1,
                "cpumask": core_mask(reactor.core()),
                "elapsed": app.clock.now().as_ns(),
            }],
        })
    });
    Ok(json!({"tick_rate": TICK_RATE, "pid": std::process::id(), "reactors": reactors.collect::<Value>()}))
}

async fn get_stats(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let mut threads = Vec::new();
    for reactor in &app.reactors {
        let counts = reactor.call(|cx: &Cx| {
            let pollers = cx.poller_stats();
            let timed = pollers.iter().filter(|poller| poller.period_ns > 0).count();
            (pollers.len() - timed, timed)
        });
        let (active, timed) = counts.await.map_err(|error| RpcError::internal(error.to_string()))?;
        threads.push(json!({
            "name": thread_name(reactor),
            "id": reactor.id().0 + 1,
            "cpumask": core_mask(reactor.core()),
            "busy": reactor.stats().busy_ns.read(),
            "idle": reactor.stats().idle_ns.read(),
            "active_pollers_count": active,
            "timed_pollers_count": timed,
            "paused_pollers_count": 0,
        }));
    }
    Ok(json!({"tick_rate": TICK_RATE, "threads": threads}))
}

async fn get_pollers(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let mut threads = Vec::new();
    for reactor in &app.reactors {
        let pollers = reactor.call(|cx: &Cx| cx.poller_stats()).await;
        let pollers = pollers.map_err(|error| RpcError::internal(error.to_string()))?;
        let (mut active, mut timed) = (Vec::new(), Vec::new());
        for (id, poller) in pollers.iter().enumerate() {
            let mut value = json!({
                "name": poller.name,
                "id": id + 1,
                "state": "waiting",
                "run_count": poller.run_count,
                "busy_count": poller.busy_count,
            });
            if poller.period_ns == 0 {
                active.push(value);
            } else {
                if let Some(members) = value.as_object_mut() {
                    members.insert("period_ticks".to_owned(), json!(poller.period_ns));
                }
                timed.push(value);
            }
        }
        threads.push(json!({
            "name": thread_name(reactor),
            "id": reactor.id().0 + 1,
            "active_pollers": active,
            "timed_pollers": timed,
            "paused_pollers": [],
        }));
    }
    Ok(json!({"tick_rate": TICK_RATE, "threads": threads}))
}

async fn get_memory(_app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    let stats = mem::stats();
    let arenas = mem::arenas();
    let arenas = arenas.iter().map(|arena| {
        json!({"bytes": arena.len, "backing": format!("{:?}", arena.backing).to_lowercase(), "numa_id": arena.node})
    });
    Ok(json!({
        "mapped_bytes": stats.mapped_bytes,
        "free_bytes": stats.free_bytes,
        "misses": stats.misses,
        "arenas": arenas.collect::<Value>(),
    }))
}

async fn set_poll_mode(app: Rc<App>, params: SetPollMode) -> Result<Value, RpcError> {
    const METHOD: &str = "penstock_reactor_set_poll_mode";
    let mode = match (params.mode.as_str(), params.spin_us) {
        ("busy", None) => PollMode::Busy,
        ("busy", Some(_)) => {
            let message = format!("{METHOD}: spin_us has no meaning with mode busy; leave it out");
            return Err(RpcError::invalid_params(message));
        }
        ("adaptive", None) => PollMode::ADAPTIVE,
        ("adaptive", Some(us)) => PollMode::Adaptive { spin_ns: us.saturating_mul(1000) },
        (other, _) => {
            let message = format!("{METHOD}: mode {other:?} is neither adaptive nor busy");
            return Err(RpcError::invalid_params(message));
        }
    };
    let chosen: Vec<_> = match params.reactor {
        None => app.reactors.iter().collect(),
        Some(id) => app.reactors.iter().filter(|reactor| reactor.id().0 == id).collect(),
    };
    if let (true, Some(id)) = (chosen.is_empty(), params.reactor) {
        let message =
            format!("there is no reactor {id}; there are 0 to {}", app.reactors.len().saturating_sub(1));
        return Err(RpcError::not_found(message));
    }
    chosen.into_iter().for_each(|reactor| reactor.set_poll_mode(mode));
    Ok(Value::Bool(true))
}
