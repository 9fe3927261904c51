//! What the daemon counts, as OpenMetrics text. A registry is filled for each scrape: the reactors' counters are the
//! only ones there are.

use std::rc::Rc;

use penstock_bdev::{Op, Shared};
use penstock_reactor::mem;
use penstock_reactor::stat::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use serde_json::Value;

use crate::cli::table::{elements, number_of, text_of};
use crate::daemon::App;

/// Upper ends of the latency buckets, in nanoseconds: 1, 2, 5 steps from 5 µs to 5 s.
const BUCKETS_NS: [u64; 19] = [
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
];

/// What is labelled how: names and values.
pub(super) type Labels = Vec<(&'static str, String)>;

/// One number, or one histogram.
#[derive(Debug)]
pub(super) enum Sample {
    Counter(u64),
    Seconds(f64),
    Gauge(i64),
    Latency { sum_seconds: f64, counts: Vec<(f64, u64)> },
}

/// All samples of one name.
#[derive(Debug)]
pub(super) struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    samples: Vec<(Labels, Sample)>,
}

/// A copy of everything, made on the control thread.
#[derive(Debug)]
struct Snapshot(Vec<Family>);

/// The text of one scrape.
///
/// # Errors
/// Never with the formatter of a string; the writer's type asks for it.
pub async fn render(app: &Rc<App>) -> Result<String, std::fmt::Error> {
    let mut families = vec![build_info()];
    families.extend(reactors(app));
    families.extend(memory());
    families.extend(bdevs(app));
    families.extend(super::nvme::controllers(app));
    families.extend(super::pool::pools(app).await);
    // A reactor that does not answer is no reason to say nothing of the rest.
    if let Ok(stats) = app.target.get_stats().await {
        families.extend(target(&stats));
    }
    if let Ok(stats) = app.iscsi.get_stats().await {
        families.extend(iscsi(&stats));
    }
    families.push(family(
        "log_records_dropped",
        "Log records that came too fast to be written.",
        [(vec![], Sample::Counter(app.log.dropped()))],
    ));
    let mut registry = Registry::with_prefix("penstock");
    registry.register_collector(Box::new(Snapshot(families)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

pub(super) fn family(
    name: &'static str,
    help: &'static str,
    samples: impl IntoIterator<Item = (Labels, Sample)>,
) -> Family {
    Family { name, help, unit: None, samples: samples.into_iter().collect() }
}

fn build_info() -> Family {
    let labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    family("build_info", "The daemon that runs; always 1.", [(labels, Sample::Gauge(1))])
}

fn seconds(ns: u64) -> Sample {
    Sample::Seconds(to_seconds(ns))
}

#[expect(clippy::cast_precision_loss, reason = "a metric of seconds is a floating-point number")]
fn to_seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

pub(super) fn gauge(value: u64) -> Sample {
    Sample::Gauge(i64::try_from(value).unwrap_or(i64::MAX))
}

fn reactors(app: &App) -> Vec<Family> {
    let each = |value: &dyn Fn(&penstock_reactor::ReactorHandle) -> Sample| {
        let of = |reactor| -> (Labels, Sample) {
            let reactor: &penstock_reactor::ReactorHandle = reactor;
            (vec![("reactor", reactor.id().to_string())], value(reactor))
        };
        app.reactors.iter().map(of).collect::<Vec<_>>()
    };
    let time = |name, help, samples| Family { name, help, unit: Some(Unit::Seconds), samples };
    vec![
        time(
            "reactor_busy",
            "Time in turns that found something to do.",
            each(&|r| seconds(r.stats().busy_ns.read())),
        ),
        time(
            "reactor_idle",
            "Time in turns that found nothing, sleep included.",
            each(&|r| seconds(r.stats().idle_ns.read())),
        ),
        time("reactor_sleep", "Time asleep.", each(&|r| seconds(r.stats().sleep_ns.read()))),
        family("reactor_turns", "Turns of the loop.", each(&|r| Sample::Counter(r.stats().turns.read()))),
        family(
            "reactor_sleeps",
            "Times it fell asleep.",
            each(&|r| Sample::Counter(r.stats().sleeps.read())),
        ),
        family(
            "reactor_messages",
            "Messages from other threads.",
            each(&|r| Sample::Counter(r.stats().messages.read())),
        ),
        family(
            "reactor_stalls",
            "Pollers that held the core for over 1 ms.",
            each(&|r| Sample::Counter(r.stats().stalls.read())),
        ),
        family(
            "reactor_tasks",
            "Control flows on the reactor.",
            each(&|r| gauge(u64::try_from(r.tasks_alive()).unwrap_or(u64::MAX))),
        ),
    ]
}

fn memory() -> Vec<Family> {
    let stats = mem::stats();
    let bytes = |name, help, value| Family {
        name,
        help,
        unit: Some(Unit::Bytes),
        samples: vec![(vec![], gauge(value))],
    };
    vec![
        bytes("memory_mapped", "Memory for data.", stats.mapped_bytes),
        bytes("memory_free", "Memory for data in no buffer and no cache.", stats.free_bytes),
        family(
            "memory_misses",
            "Requests for a buffer that found none.",
            [(vec![], Sample::Counter(stats.misses))],
        ),
    ]
}

/// Operations that are shown one by one.
fn labelled(bdev: &Shared, op: Op) -> Labels {
    vec![("bdev", bdev.name().to_owned()), ("op", op.name().to_owned())]
}

fn bdevs(app: &App) -> Vec<Family> {
    let (mut ops, mut bytes, mut errors, mut latency, mut depth, mut size) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for bdev in app.registry.list() {
        let shared = bdev.shared();
        let name = || vec![("bdev", shared.name().to_owned())];
        let total = shared.blocks().saturating_mul(u64::from(shared.block_bytes()));
        size.push((name(), gauge(total)));
        depth.push((name(), gauge(shared.all_stats().map(|(_, stats)| stats.in_flight.read()).sum())));
        for op in Op::ALL {
            let of = |read: &dyn Fn(&penstock_bdev::OpStats) -> u64| {
                shared.all_stats().map(|(_, stats)| read(stats.op(op))).sum::<u64>()
            };
            let count = of(&|stats| stats.ops.read());
            if count == 0 && !matches!(op, Op::Read | Op::Write) {
                continue;
            }
            ops.push((labelled(shared, op), Sample::Counter(count)));
            bytes.push((labelled(shared, op), Sample::Counter(of(&|stats| stats.bytes.read()))));
            errors.push((labelled(shared, op), Sample::Counter(of(&|stats| stats.errors.read()))));
            let histogram = crate::daemon::stats::latencies(shared, |other| other == op);
            let sum_seconds = to_seconds(of(&|stats| stats.latency_ns_sum.read()));
            latency
                .push((labelled(shared, op), Sample::Latency { sum_seconds, counts: cumulate(&histogram) }));
        }
    }
    vec![
        family("bdev_ops", "I/Os that ended.", ops),
        Family {
            name: "bdev",
            help: "Bytes of I/Os that succeeded.",
            unit: Some(Unit::Bytes),
            samples: bytes,
        },
        family("bdev_errors", "I/Os that did not succeed.", errors),
        Family {
            name: "bdev_latency",
            help: "From submission to completion.",
            unit: Some(Unit::Seconds),
            samples: latency,
        },
        family("bdev_queue_depth", "I/Os under way.", depth),
        Family { name: "bdev_size", help: "Length of the bdev.", unit: Some(Unit::Bytes), samples: size },
    ]
}

/// The NVMe-oF target, from what `nvmf_get_stats` says of each reactor.
fn target(stats: &Value) -> Vec<Family> {
    let groups = stats.get("poll_groups").map(elements).unwrap_or_default();
    let each = |member: &str, sample: fn(u64) -> Sample| {
        let of = |group| (vec![("thread", text_of(group, "name"))], sample(number_of(group, member)));
        groups.iter().map(of).collect::<Vec<_>>()
    };
    let counter = Sample::Counter;
    vec![
        family("nvmf_connections", "Connections that are open.", each("connections", gauge)),
        family(
            "nvmf_controllers",
            "Controllers, by the reactor of their admin queue.",
            each("current_admin_qpairs", gauge),
        ),
        family("nvmf_io_queues", "I/O queues that are connected.", each("current_io_qpairs", gauge)),
        family("nvmf_commands", "Commands that were answered.", each("completed_nvme_io", counter)),
        family("nvmf_refused", "Connections that were refused.", each("refused", counter)),
        family("nvmf_terminated", "Connections that were ended for an error.", each("terminated", counter)),
        family("nvmf_buffer_waits", "Commands that waited for a buffer.", each("buffer_waits", counter)),
    ]
}

/// The iSCSI target, from what `iscsi_get_stats` says of each reactor.
fn iscsi(stats: &Value) -> Vec<Family> {
    let groups = stats.get("poll_groups").map(elements).unwrap_or_default();
    let each = |member: &str, sample: fn(u64) -> Sample| {
        let of = |group| (vec![("thread", text_of(group, "name"))], sample(number_of(group, member)));
        groups.iter().map(of).collect::<Vec<_>>()
    };
    let counter = Sample::Counter;
    vec![
        family("iscsi_connections", "Connections that are open.", each("connections", gauge)),
        family("iscsi_half_open", "Connections whose login is not over.", each("half_open", gauge)),
        family(
            "iscsi_sessions",
            "Sessions, discovery included.",
            [(vec![], gauge(number_of(stats, "sessions")))],
        ),
        family("iscsi_logins", "Logins that succeeded.", each("logins", counter)),
        family("iscsi_login_failures", "Logins that were refused.", each("login_failures", counter)),
        family(
            "iscsi_auth_failures",
            "Logins without the proof that was asked for.",
            each("auth_failures", counter),
        ),
        family("iscsi_redirects", "Logins that were sent elsewhere.", each("redirects", counter)),
        family("iscsi_refused", "Connections that were turned away.", each("refused", counter)),
        family("iscsi_timed_out", "Connections closed because nothing came.", each("timed_out", counter)),
    ]
}

/// Our buckets, in those of the metrics: upper end in seconds, and how many fell into that one.
fn cumulate(histogram: &Histogram) -> Vec<(f64, u64)> {
    let mut counts: Vec<(f64, u64)> =
        BUCKETS_NS.iter().map(|ns| (to_seconds(*ns), 0)).chain([(f64::INFINITY, 0)]).collect();
    for (_, high, count) in histogram.iter() {
        let index = BUCKETS_NS.partition_point(|end| *end < high);
        if let Some(bucket) = counts.get_mut(index) {
            bucket.1 += count;
        }
    }
    counts
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            family.encode(&mut encoder)?;
        }
        Ok(())
    }
}

impl Family {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let kind = self.samples.first().map_or(MetricType::Unknown, |(_, sample)| sample.metric_type());
        let mut metrics = encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), kind)?;
        for (labels, sample) in &self.samples {
            let labels: Vec<(&str, &str)> =
                labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
            sample.encode(metrics.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl EncodeMetric for Sample {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Counter(value) => ConstCounter::new(*value).encode(encoder),
            Self::Seconds(value) => ConstCounter::new(*value).encode(encoder),
            Self::Gauge(value) => ConstGauge::new(*value).encode(encoder),
            Self::Latency { sum_seconds, counts } => {
                let total = counts.iter().map(|(_, count)| count).sum();
                encoder.encode_histogram::<NoLabelSet>(*sum_seconds, total, counts, None)
            }
        }
    }

    fn metric_type(&self) -> MetricType {
        match self {
            Self::Counter(_) | Self::Seconds(_) => MetricType::Counter,
            Self::Gauge(_) => MetricType::Gauge,
            Self::Latency { .. } => MetricType::Histogram,
        }
    }
}
