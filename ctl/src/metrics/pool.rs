//! Metrics of pools.

use super::text::{Family, Labels, Sample, family, gauge};
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
    vec![
        each("pool_capacity_bytes", "What data and maps may occupy.", &|usage| gauge(usage.capacity)),
        each("pool_free_bytes", "What nothing occupies.", &|usage| gauge(usage.free)),
        each("pool_used_bytes", "What egroups occupy.", &|usage| gauge(usage.used)),
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
    ]
}
