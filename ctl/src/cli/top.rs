//! `penstock top`: rates of the last interval, again and again.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyCode, KeyModifiers};
use crossterm::terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, execute};
use serde_json::{Value, json};

use crate::cli::CliError;
use crate::cli::client::Client;
use crate::cli::node::percent;
use crate::cli::table::{Table, bytes, elements, number_of, text_of, time_ns};

/// Between two views at least, in seconds.
const INTERVAL_MIN: f64 = 0.1;

/// What was read at one moment, by object and counter.
#[derive(Debug, Default)]
struct Sample {
    counters: BTreeMap<(String, &'static str), u64>,
    values: [Value; 3],
}

const REACTOR_COUNTERS: [&str; 4] = ["busy", "idle", "sleep", "stalls"];
const BDEV_COUNTERS: [&str; 6] = [
    "num_read_ops",
    "bytes_read",
    "read_latency_ticks",
    "num_write_ops",
    "bytes_written",
    "write_latency_ticks",
];

impl Sample {
    fn take(client: &mut Client) -> Result<Self, CliError> {
        let reactors = client.call("framework_get_reactors", json!({}))?;
        let bdevs = client.call("bdev_get_iostat", json!({}))?;
        let stats = client.call("nvmf_get_stats", json!({}))?;
        let mut counters = BTreeMap::new();
        for reactor in reactors.get("reactors").map(elements).unwrap_or_default() {
            let name = text_of(reactor, "reactor");
            counters
                .extend(REACTOR_COUNTERS.map(|member| ((name.clone(), member), number_of(reactor, member))));
        }
        for bdev in bdevs.get("bdevs").map(elements).unwrap_or_default() {
            let name = text_of(bdev, "name");
            counters.extend(BDEV_COUNTERS.map(|member| ((name.clone(), member), number_of(bdev, member))));
        }
        Ok(Self { counters, values: [reactors, bdevs, stats] })
    }

    fn since(&self, earlier: &Self, object: &str, counter: &'static str) -> u64 {
        let key = (object.to_owned(), counter);
        let of = |sample: &Self| sample.counters.get(&key).copied();
        // An object that was not there before has no rate yet.
        of(self).zip(of(earlier)).map_or(0, |(now, before)| now.saturating_sub(before))
    }
}

/// Shows views until it is told to end, or `count` were shown.
pub(crate) fn run(
    client: &mut Client,
    writer: &mut dyn Write,
    interval: f64,
    count: Option<u64>,
) -> Result<(), CliError> {
    let period = Duration::try_from_secs_f64(interval.max(INTERVAL_MIN))
        .map_err(|_| CliError::Usage(format!("--interval {interval} is no number of seconds")))?;
    if !io::stdout().is_terminal() {
        return views(client, writer, period, count, false);
    }
    terminal::enable_raw_mode().map_err(CliError::Output)?;
    let entered = execute!(io::stdout(), EnterAlternateScreen, cursor::Hide).map_err(CliError::Output);
    let done = entered.and_then(|()| views(client, writer, period, count, true));
    // The terminal is given back as it was, whatever happened.
    drop(execute!(io::stdout(), LeaveAlternateScreen, cursor::Show));
    drop(terminal::disable_raw_mode());
    done
}

fn views(
    client: &mut Client,
    writer: &mut dyn Write,
    period: Duration,
    count: Option<u64>,
    screen: bool,
) -> Result<(), CliError> {
    let mut earlier = Sample::take(client)?;
    let mut at = Instant::now();
    let mut shown = 0;
    while count.is_none_or(|count| shown < count) {
        if wait(period, screen).map_err(CliError::Output)? {
            return Ok(());
        }
        let now = Sample::take(client)?;
        let passed = at.elapsed();
        at = Instant::now();
        let text = view(&now, &earlier, passed);
        if screen {
            draw(&text).map_err(CliError::Output)?;
        } else {
            writeln!(writer, "{text}").map_err(CliError::Output)?;
        }
        earlier = now;
        shown += 1;
    }
    Ok(())
}

/// Waits for the next view; true where the person ends it.
fn wait(period: Duration, screen: bool) -> io::Result<bool> {
    if !screen {
        std::thread::sleep(period);
        return Ok(false);
    }
    let end = Instant::now() + period;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if !event::poll(left)? {
            continue;
        }
        if let Event::Key(key) = event::read()? {
            let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn draw(text: &str) -> io::Result<()> {
    let (columns, rows) = terminal::size()?;
    let mut stdout = io::stdout().lock();
    execute!(stdout, cursor::MoveTo(0, 0), Clear(ClearType::All))?;
    for line in text.lines().take(usize::from(rows.saturating_sub(1))) {
        let cut: String = line.chars().take(usize::from(columns)).collect();
        write!(stdout, "{cut}\r\n")?;
    }
    stdout.flush()
}

fn view(now: &Sample, earlier: &Sample, passed: Duration) -> String {
    let [reactors, bdevs, stats] = &now.values;
    let ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = |count: u64| u64::try_from(u128::from(count) * 1000 / u128::from(ms)).unwrap_or(u64::MAX);
    let mut table = Table::new(&["REACTOR", "POLLS", "BUSY", "ASLEEP", "STALLS"], 2);
    for reactor in reactors.get("reactors").map(elements).unwrap_or_default() {
        let name = text_of(reactor, "reactor");
        let since = |counter| now.since(earlier, &name, counter);
        let total = since("busy") + since("idle");
        let shares =
            [percent(since("busy"), total), percent(since("sleep"), total), since("stalls").to_string()];
        table.row([name.clone(), text_of(reactor, "poll_mode")].into_iter().chain(shares));
    }
    let mut text = table.text("no reactors");
    let mut table =
        Table::new(&["BDEV", "READ/S", "READ", "LATENCY", "WRITE/S", "WRITTEN", "LATENCY", "QUEUED"], 1);
    for bdev in bdevs.get("bdevs").map(elements).unwrap_or_default() {
        let name = text_of(bdev, "name");
        let mut cells = vec![name.clone()];
        for [ops, moved, latency] in [
            ["num_read_ops", "bytes_read", "read_latency_ticks"],
            ["num_write_ops", "bytes_written", "write_latency_ticks"],
        ] {
            let count = now.since(earlier, &name, ops);
            let average = now.since(earlier, &name, latency).checked_div(count).unwrap_or(0);
            let moved = bytes(rate(now.since(earlier, &name, moved)));
            cells.extend([rate(count).to_string(), format!("{moved}/s"), time_ns(average)]);
        }
        cells.push(text_of(bdev, "queue_depth"));
        table.row(cells);
    }
    text.push('\n');
    text.push_str(&table.text("no bdevs"));
    let groups = stats.get("poll_groups").map(elements).unwrap_or_default();
    let sum = |member| groups.iter().map(|group| number_of(group, member)).sum::<u64>();
    let (controllers, queues) = (sum("current_admin_qpairs"), sum("current_io_qpairs"));
    text.push_str(&format!("\nNVMe/TCP: {controllers} controllers, {queues} I/O queues\n"));
    text
}
