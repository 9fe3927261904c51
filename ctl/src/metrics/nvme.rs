//! Metrics of NVMe controllers that are driven from user space.

use std::sync::Arc;

use penstock_nvme::controller::{Controller, ControllerState, Health};
use penstock_nvme::queue::QueueStats;

use super::text::{Family, Labels, Sample, family, gauge};
use crate::daemon::App;

/// One look at everything that is told of controllers.
pub(super) fn controllers(app: &App) -> Vec<Family> {
    let all = app.nvme.list();
    if all.is_empty() {
        return Vec::new();
    }
    let label =
        |controller: &Arc<Controller>| -> Labels { vec![("controller", controller.name().to_owned())] };
    let health = |name, help, read: &dyn Fn(&Health) -> Sample| {
        let of = |controller: &Arc<Controller>| Some((label(controller), read(&controller.health()?)));
        family(name, help, all.iter().filter_map(of))
    };
    let queues = |name, help, read: &dyn Fn(&QueueStats) -> u64| {
        let sum =
            |controller: &Arc<Controller>| controller.queue_stats().iter().map(|stats| read(stats)).sum();
        family(name, help, all.iter().map(|controller| (label(controller), Sample::Counter(sum(controller)))))
    };
    let live = |controller: &Arc<Controller>| u64::from(controller.report().state == ControllerState::Live);
    let resets = |controller: &Arc<Controller>| Sample::Counter(controller.report().resets);
    let aborts = |controller: &Arc<Controller>| Sample::Counter(controller.report().aborts);
    vec![
        family(
            "nvme_live",
            "Whether the controller serves.",
            all.iter().map(|one| (label(one), gauge(live(one)))),
        ),
        family(
            "nvme_resets",
            "Resets since it was attached.",
            all.iter().map(|one| (label(one), resets(one))),
        ),
        family(
            "nvme_aborts",
            "Commands that were to be aborted.",
            all.iter().map(|one| (label(one), aborts(one))),
        ),
        health("nvme_temperature_celsius", "Composite temperature.", &|health| {
            Sample::Gauge(i64::from(health.temperature_celsius))
        }),
        health("nvme_critical_warning", "Critical warnings, as bits.", &|health| {
            gauge(health.critical_warning.into())
        }),
        health("nvme_available_spare_percent", "Spare capacity left.", &|health| {
            gauge(health.available_spare_percentage.into())
        }),
        health("nvme_used_percent", "Of the endurance that was promised.", &|health| {
            gauge(health.percentage_used.into())
        }),
        health("nvme_media_errors", "Errors of the medium over its life.", &|health| {
            Sample::Counter(health.media_errors)
        }),
        health("nvme_unsafe_shutdowns", "Power losses without a shutdown over its life.", &|health| {
            Sample::Counter(health.unsafe_shutdowns)
        }),
        queues("nvme_commands", "I/O commands given to the controller.", &|stats| stats.commands.read()),
        queues("nvme_doorbells", "Doorbell registers written.", &|stats| stats.doorbells.read()),
        queues("nvme_bounced", "I/Os whose data had to be moved.", &|stats| stats.bounced.read()),
        queues("nvme_retries", "Commands tried again for their status.", &|stats| stats.retries.read()),
        queues("nvme_replays", "Commands done again after a reset.", &|stats| stats.replays.read()),
        queues("nvme_timeouts", "Commands that took too long.", &|stats| stats.timeouts.read()),
    ]
}
