//! `bdev_get_iostat` and its reset.

use std::rc::Rc;

use penstock_bdev::{Op, Shared};
use serde_json::{Map, Value, json};

use crate::daemon::App;
use crate::daemon::stats::{Counts, OpCounts, Reset};
use crate::methods::bdev::named;
use crate::methods::reactor::TICK_RATE;
use crate::params;
use crate::rpc::{Kind, RpcError, Table};

params! {
    /// Of `bdev_get_iostat`.
    GetIostat {
        /// Names, aliases or UUIDs of bdevs. Default: all.
        names: Option<Vec<String>>,
        /// Name, alias or UUID of one bdev: the form of older clients.
        name: Option<String>,
        /// Whether each reactor's part is shown by itself. Needs the name of one bdev. Default: false.
        per_channel: Option<bool>,
        /// What to forget afterwards: all, maxmin, error or none. Default: none.
        reset_mode: Option<String>,
    }
}

params! {
    /// Of `bdev_reset_iostat`.
    ResetIostat {
        /// Name, alias or UUID of one bdev. Default: all.
        name: Option<String>,
        /// What to forget: all, maxmin, error or none. Default: all.
        mode: Option<String>,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "bdev_get_iostat",
            Kind::Act,
            "What bdevs did: operations, bytes, and latencies in nanoseconds (tick_rate 1e9), since the last reset.",
            get_iostat,
        )
        .add("bdev_reset_iostat", Kind::Act, "Begins bdevs' statistics anew; histograms are left alone.", reset_iostat);
}

fn reset_mode(method: &str, name: &str, mode: Option<&str>, default: Reset) -> Result<Reset, RpcError> {
    match mode {
        None => Ok(default),
        Some("all") => Ok(Reset::All),
        Some("maxmin") => Ok(Reset::Extremes),
        Some("error") => Ok(Reset::Errors),
        Some("none") => Ok(Reset::None),
        Some(other) => {
            let message = format!("{method}: {name} {other:?} is none of all, maxmin, error, none");
            Err(RpcError::invalid_params(message))
        }
    }
}

async fn get_iostat(app: Rc<App>, params: GetIostat) -> Result<Value, RpcError> {
    const METHOD: &str = "bdev_get_iostat";
    let mode = reset_mode(METHOD, "reset_mode", params.reset_mode.as_deref(), Reset::None)?;
    let names = match (params.names, params.name) {
        (Some(_), Some(_)) => {
            return Err(RpcError::invalid_params(format!("{METHOD}: give names or name, not both")));
        }
        (names, None) => names,
        (None, Some(name)) => Some(vec![name]),
    };
    let per_channel = params.per_channel.unwrap_or(false);
    if per_channel && names.as_ref().is_none_or(|names| names.len() != 1) {
        let message = format!("{METHOD}: per_channel needs the name of one bdev in names");
        return Err(RpcError::invalid_params(message));
    }
    let mut shown = Vec::new();
    for bdev in named(&app, names.as_deref())? {
        let shared = bdev.shared();
        let mut value = if per_channel { channels(&app, shared) } else { total(&app, shared) };
        value.insert("name".to_owned(), json!(shared.name()));
        if let Some(health) = bdev.health() {
            value.insert("health".to_owned(), health);
        }
        shown.push(Value::Object(value));
        app.baselines.borrow_mut().reset(shared, mode);
    }
    Ok(json!({"tick_rate": TICK_RATE, "ticks": app.clock.now().as_ns(), "bdevs": shown}))
}

async fn reset_iostat(app: Rc<App>, params: ResetIostat) -> Result<Value, RpcError> {
    let mode = reset_mode("bdev_reset_iostat", "mode", params.mode.as_deref(), Reset::All)?;
    let names = params.name.map(|name| vec![name]);
    for bdev in named(&app, names.as_deref())? {
        app.baselines.borrow_mut().reset(bdev.shared(), mode);
    }
    Ok(Value::Bool(true))
}

/// The counters of a bdev over all reactors.
pub(crate) fn sum(app: &App, bdev: &Shared) -> Counts {
    let baselines = app.baselines.borrow();
    let mut sum = Counts::default();
    for (reactor, stats) in bdev.all_stats() {
        let counts = baselines.counts(bdev, reactor, stats);
        sum.iter_mut().zip(counts).for_each(|(sum, one)| *sum = sum.plus(one));
    }
    sum
}

fn total(app: &App, bdev: &Shared) -> Map<String, Value> {
    let mut value = shown(&sum(app, bdev));
    let in_flight: u64 = bdev.all_stats().map(|(_, stats)| stats.in_flight.read()).sum();
    value.insert("queue_depth".to_owned(), json!(in_flight));
    value
}

fn channels(app: &App, bdev: &Shared) -> Map<String, Value> {
    let baselines = app.baselines.borrow();
    let channels = bdev.all_stats().map(|(reactor, stats)| {
        let mut value = shown(&baselines.counts(bdev, reactor, stats));
        value.insert("thread_id".to_owned(), json!(reactor.0 + 1));
        value.insert("queue_depth".to_owned(), json!(stats.in_flight.read()));
        Value::Object(value)
    });
    Map::from_iter([("channels".to_owned(), channels.collect())])
}

/// SPDK's members: `bytes_read`, `num_read_ops`, `read_latency_ticks`, …
fn shown(counts: &Counts) -> Map<String, Value> {
    let groups: [(&str, &str, &[Op]); 4] = [
        ("read", "bytes_read", &[Op::Read]),
        ("write", "bytes_written", &[Op::Write, Op::CompareAndWrite]),
        ("unmap", "bytes_unmapped", &[Op::Unmap]),
        ("copy", "bytes_copied", &[Op::Copy]),
    ];
    let mut value = Map::new();
    for (word, bytes, ops) in groups {
        let group = of(counts, ops);
        value.insert(bytes.to_owned(), json!(group.bytes));
        value.insert(format!("num_{word}_ops"), json!(group.ops));
        value.insert(format!("{word}_latency_ticks"), json!(group.latency_ns_sum));
        value.insert(format!("max_{word}_latency_ticks"), json!(group.latency_ns_max));
        value.insert(format!("min_{word}_latency_ticks"), json!(group.latency_ns_min));
    }
    for op in [Op::Flush, Op::WriteZeroes, Op::Compare] {
        value.insert(format!("num_{}_ops", op.name()), json!(of(counts, &[op]).ops));
    }
    let errors = Op::ALL.iter().filter_map(|op| {
        let errors = of(counts, &[*op]).errors;
        (errors > 0).then(|| (op.name().to_owned(), json!(errors)))
    });
    value.insert("io_error".to_owned(), Value::Object(errors.collect()));
    value
}

fn of(counts: &Counts, ops: &[Op]) -> OpCounts {
    let chosen = Op::ALL.iter().zip(counts).filter(|(op, _)| ops.contains(op));
    chosen.fold(OpCounts::default(), |sum, (_, counts)| sum.plus(*counts))
}
