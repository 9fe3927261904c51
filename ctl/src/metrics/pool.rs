//! Metrics of pools.

use serde_json::Value;

use super::text::{Family, Labels, Sample, family, gauge};
use crate::cli::table::{number_of, text_of};
use crate::daemon::App;

/// One look at everything that is told of pools.
pub(super) async fn pools(app: &App) -> Vec<Family> {
    let mut all = Vec::new();
    for pool in app.fabric.pools() {
        // A reactor that does not answer is no reason to say nothing of the rest.
        if let Ok(usage) = pool.usage().await {
            all.push((pool.name(), usage));
        }
    }
    if all.is_empty() {
        return Vec::new();
    }
    let each = |name, help, read: &dyn Fn(&penstock_fabric::node::PoolUsage) -> Sample| {
        let of =
            |(pool, usage): &(String, _)| -> (Labels, Sample) { (vec![("pool", pool.clone())], read(usage)) };
        family(name, help, all.iter().map(of))
    };
    let mut families = vec![
        each("pool_capacity_bytes", "What data and maps may occupy.", &|usage| gauge(usage.capacity)),
        each("pool_free_bytes", "What nothing occupies.", &|usage| gauge(usage.free)),
        each("pool_used_bytes", "What egroups occupy.", &|usage| gauge(usage.used)),
        each("pool_decoded_bytes", "What is in egroups when it is decoded.", &|usage| gauge(usage.decoded)),
        each("pool_used_percent", "How full it is.", &|usage| gauge(usage.percent().into())),
        each("pool_live_bytes", "What of that maps refer to.", &|usage| gauge(usage.live)),
        each("pool_mapped_bytes", "What vdisks map.", &|usage| gauge(usage.mapped)),
        each("pool_undrained_bytes", "What waits in memory and log to be put in its place.", &|usage| {
            gauge(usage.undrained)
        }),
        each("pool_log_segments_used", "Segments of the logs in use.", &|usage| gauge(usage.log_segments.0)),
        each("pool_full_lanes", "Lanes that find no room.", &|usage| gauge(usage.full_lanes)),
        each("pool_failed_lanes", "Lanes that take no writes any more.", &|usage| gauge(usage.failed_lanes)),
        each("pool_checksum_errors", "Blocks that did not fit their checksums.", &|usage| {
            Sample::Counter(usage.checksum_errors)
        }),
    ];
    families.extend(vdisks(app).await);
    families
}

/// Of vdisks and containers, from what the methods say of them.
async fn vdisks(app: &App) -> Vec<Family> {
    let (mut vdisks, mut containers) = (Vec::new(), Vec::new());
    for pool in app.fabric.pools() {
        vdisks.extend(pool.describe_vdisks(None).await.unwrap_or_default());
        containers.extend(pool.describe_containers().await.unwrap_or_default());
    }
    let each = |name, help, label: &'static str, of: &[Value], member: &str| {
        let sample = |one: &Value| -> (Labels, Sample) {
            let labels = vec![("pool", text_of(one, "pool")), (label, text_of(one, "name"))];
            (labels, gauge(number_of(one, member)))
        };
        family(name, help, of.iter().map(sample))
    };
    let (of_vdisks, of_containers) = ("vdisk", "container");
    vec![
        each("vdisk_bytes", "Its length.", of_vdisks, &vdisks, "bytes"),
        each("vdisk_mapped_bytes", "What it maps.", of_vdisks, &vdisks, "mapped_bytes"),
        each("vdisk_snapshots", "Its snapshots.", of_vdisks, &vdisks, "snapshots"),
        each("container_mapped_bytes", "What its vdisks map.", of_containers, &containers, "mapped_bytes"),
        each(
            "container_limit_bytes",
            "What they may map; 0: no limit.",
            of_containers,
            &containers,
            "limit_bytes",
        ),
        each(
            "container_reserved_bytes",
            "What is kept for it.",
            of_containers,
            &containers,
            "reserved_bytes",
        ),
    ]
}
