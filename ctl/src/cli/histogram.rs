//! `penstock bdev histogram` and `penstock iscsi histogram`: latencies as percentiles and a table.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::cli::args::HistogramCommand;
use crate::cli::client::Client;
use crate::cli::table::{Table, number_of, time_ns};
use crate::cli::{CliError, Out};

/// Ten-thousandths.
const PERCENTILES: [(u64, &str); 6] = [
    (5_000, "50 %"),
    (9_000, "90 %"),
    (9_900, "99 %"),
    (9_990, "99.9 %"),
    (9_999, "99.99 %"),
    (10_000, "all"),
];

/// Width of the longest bar.
const BAR_MAX: u64 = 40;

/// Whose histograms: the methods differ in their first word.
pub(crate) fn run(
    client: &mut Client,
    out: &mut Out<'_>,
    whose: &str,
    command: HistogramCommand,
) -> Result<(), CliError> {
    let enable = format!("{whose}_enable_histogram");
    match command {
        HistogramCommand::Start { name, op, granularity } => {
            let mut params = json!({"name": name, "enable": true});
            if let Some(members) = params.as_object_mut() {
                members.extend(op.map(|op| ("opc".to_owned(), json!(op))));
                members.extend(granularity.map(|bits| ("granularity".to_owned(), json!(bits))));
            }
            client.call(&enable, params)?;
            out.line(&format!("counting latencies of {name}"))
        }
        HistogramCommand::Show { name } => {
            let value = client.call(&format!("{whose}_get_histogram"), json!({"name": name}))?;
            let text = Latencies::parse(&value).map(|latencies| latencies.text());
            let text = text.ok_or_else(|| CliError::Usage("the daemon's histogram makes no sense".into()))?;
            out.show(&value, |_| text)
        }
        HistogramCommand::Stop { name } => {
            client.call(&enable, json!({"name": name, "enable": false}))?;
            out.line(&format!("latencies of {name} are counted no more"))
        }
    }
}

/// Buckets that are not empty: from, to (both in nanoseconds, the end not included) and how many, in ascending order.
struct Latencies(Vec<(u64, u64, u64)>);

impl Latencies {
    /// Takes SPDK's encoding: range 0 has a bucket for each value below 2^granularity, range r cuts what has
    /// r + granularity bits into 2^granularity equal parts.
    fn parse(value: &Value) -> Option<Self> {
        let granularity = u32::try_from(number_of(value, "granularity")).ok().filter(|bits| *bits < 32)?;
        let min_range = u32::try_from(number_of(value, "min_range")).ok()?;
        let bytes = STANDARD.decode(value.get("histogram")?.as_str()?).ok()?;
        // Ticks per second; 0 is none.
        let rate = u128::from(number_of(value, "tsc_rate").max(1));
        let nanoseconds =
            |ticks: u128| u64::try_from(ticks.saturating_mul(1_000_000_000) / rate).unwrap_or(u64::MAX);
        let mut buckets = Vec::new();
        for (index, count) in (0_u64..).zip(bytes.chunks_exact(8)) {
            let count = u64::from_le_bytes(count.try_into().ok()?);
            if count == 0 {
                continue;
            }
            let range = min_range.checked_add(u32::try_from(index >> granularity).ok()?)?;
            let part = index & ((1 << granularity) - 1);
            let (first, shift) = if range == 0 { (part, 0) } else { (part + (1 << granularity), range - 1) };
            let tick = |first: u64| u128::from(first).checked_shl(shift).filter(|_| shift < 64);
            buckets.push((nanoseconds(tick(first)?), nanoseconds(tick(first + 1)?), count));
        }
        Some(Self(buckets))
    }

    /// The latency that so many ten-thousandths of all do not exceed.
    fn percentile(&self, share: u64) -> u64 {
        let total: u128 = self.0.iter().map(|(_, _, count)| u128::from(*count)).sum();
        let wanted = (total * u128::from(share)).div_ceil(10_000);
        let mut seen = 0;
        for (_, to, count) in &self.0 {
            seen += u128::from(*count);
            if seen >= wanted {
                return *to;
            }
        }
        0
    }

    /// Percentiles, then a line for each power of two.
    fn text(&self) -> String {
        let total: u64 = self.0.iter().map(|(_, _, count)| *count).sum();
        if total == 0 {
            return "no I/O has been counted\n".to_owned();
        }
        let mut head = Table::new(&["SHARE", "WITHIN"], 0);
        for (share, name) in PERCENTILES {
            head.row([name.to_owned(), time_ns(self.percentile(share))]);
        }
        let mut lines: Vec<(u64, u64)> = Vec::new();
        for (from, _, count) in &self.0 {
            let power = from.max(&1).ilog2().into();
            match lines.last_mut().filter(|(last, _)| *last == power) {
                Some((_, sum)) => *sum += count,
                None => lines.push((power, *count)),
            }
        }
        let most = lines.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
        let mut table = Table::new(&["FROM", "TO", "I/OS", "SHARE", ""], 2);
        for (power, count) in lines {
            let hundredths = u128::from(count) * 10_000 / u128::from(total);
            let bar = u128::from(count) * u128::from(BAR_MAX) / u128::from(most);
            let bar = "#".repeat(usize::try_from(bar).unwrap_or(0));
            let from = 1_u64.checked_shl(u32::try_from(power).unwrap_or(63)).unwrap_or(u64::MAX);
            table.row([
                time_ns(if power == 0 { 0 } else { from }),
                time_ns(from.saturating_mul(2)),
                count.to_string(),
                format!("{}.{:02} %", hundredths / 100, hundredths % 100),
                format!("{bar:<40}"),
            ]);
        }
        format!("{total} I/Os\n\n{}\n{}", head.text(""), table.text(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Granularity 1: buckets of 0, 1, 2, 3, 4..6, 6..8, 8..12, 12..16, …
    fn value(min_range: u32, counts: &[u64]) -> Value {
        let bytes: Vec<u8> = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        json!({"histogram": STANDARD.encode(bytes), "granularity": 1, "min_range": min_range,
            "max_range": 63, "tsc_rate": 1_000_000_000})
    }

    #[test]
    fn buckets_have_the_bounds_that_spdk_gives_them() {
        let Latencies(all) = Latencies::parse(&value(0, &[1, 0, 2, 3, 0, 4])).unwrap();
        assert_eq!(all, [(0, 1, 1), (2, 3, 2), (3, 4, 3), (6, 8, 4)]);
        let Latencies(some) = Latencies::parse(&value(3, &[1, 2])).unwrap();
        assert_eq!(some, [(8, 12, 1), (12, 16, 2)]);
    }

    #[test]
    fn percentiles_are_upper_bounds_of_buckets() {
        let latencies = Latencies::parse(&value(3, &[90, 9, 1])).unwrap();
        assert_eq!(latencies.percentile(5_000), 12);
        assert_eq!(latencies.percentile(9_000), 12);
        assert_eq!(latencies.percentile(9_900), 16);
        assert_eq!(latencies.percentile(9_990), 24);
        assert!(latencies.text().contains("99.9 %   24 ns"), "{}", latencies.text());
    }

    #[test]
    fn rubbish_and_emptiness_are_told() {
        assert_eq!(Latencies::parse(&value(0, &[])).unwrap().text(), "no I/O has been counted\n");
        assert!(Latencies::parse(&json!({})).is_none());
        assert!(Latencies::parse(&json!({"histogram": "!", "granularity": 7})).is_none());
        assert!(Latencies::parse(&value(u32::MAX, &[1, 1, 1])).is_none());
    }
}
