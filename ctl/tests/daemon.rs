//! The daemon as a process: its socket, its refusals, its state, its end; and the tool's words.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test: what is not as expected is a failure"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const START_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(15);
const NQN: &str = "nqn.2026-11.io.penstock:test";

/// A daemon with a directory of its own; killed with the value.
struct Daemon {
    dir: PathBuf,
    process: Child,
}

impl Daemon {
    fn start(name: &str, words: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!("penstock-daemon-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        Self::start_in(dir, words)
    }

    fn start_in(dir: PathBuf, words: &[&str]) -> Self {
        let process = command(&dir, words).spawn().unwrap();
        let mut daemon = Self { dir, process };
        let since = Instant::now();
        while UnixStream::connect(daemon.socket()).is_err() {
            assert_eq!(daemon.process.try_wait().unwrap(), None, "the daemon ended at once");
            assert!(since.elapsed() < START_LIMIT, "the daemon did not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("penstock.sock")
    }

    fn call(&self, method: &str, params: Value) -> Result<Value, (i64, String)> {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(START_LIMIT)).unwrap();
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        stream.write_all(request.to_string().as_bytes()).unwrap();
        let mut answer: Value =
            serde_json::Deserializer::from_reader(stream).into_iter().next().unwrap().unwrap();
        match answer.get("error") {
            Some(error) => {
                Err((error["code"].as_i64().unwrap(), error["message"].as_str().unwrap().to_owned()))
            }
            None => Ok(answer["result"].take()),
        }
    }

    /// What the daemon answers to these bytes, until it closes or says no more.
    fn send(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(START_LIMIT)).unwrap();
        // The daemon may have closed already.
        drop(stream.write_all(bytes));
        drop(stream.shutdown(std::net::Shutdown::Write));
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        String::from_utf8(answer).unwrap()
    }

    fn tool(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_penstock"))
            .arg("-s")
            .arg(self.socket())
            .args(words)
            .output()
            .unwrap()
    }

    fn says(&self, words: &[&str]) -> String {
        let output = self.tool(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Ends it with SIGTERM; returns its directory.
    fn end(mut self) -> PathBuf {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(wait(&mut self.process), Some(0), "SIGTERM did not end it cleanly");
        assert!(!self.socket().exists(), "the socket stayed");
        self.dir.clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn command(dir: &PathBuf, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstockd"));
    command.current_dir(dir).args(["--socket", "penstock.sock", "--reactors", "2"]).args(words);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}

fn wait(process: &mut Child) -> Option<i32> {
    let since = Instant::now();
    while since.elapsed() < END_LIMIT {
        if let Some(status) = process.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the process did not end");
}

fn malloc(name: &str) -> Value {
    json!({"name": name, "num_blocks": 16384, "block_size": 512})
}

#[test]
fn the_socket_is_private_and_a_second_daemon_on_it_is_refused() {
    let daemon = Daemon::start("private", &[]);
    assert_eq!(std::fs::metadata(daemon.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    let second = command(&daemon.dir, &[]).stderr(Stdio::piped()).output().unwrap();
    assert!(!second.status.success());
    let words = String::from_utf8(second.stderr).unwrap();
    assert!(words.contains("another daemon serves penstock.sock"), "{words}");
    daemon.call("spdk_get_version", json!({})).unwrap();
    daemon.end();
}

#[test]
fn rubbish_is_answered_and_hurts_nobody() {
    let daemon = Daemon::start("rubbish", &[]);
    for (bytes, word) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "-32700"),
        (b"{\"jsonrpc\": \"2.0\", \"method\": }", "-32700"),
        (b"[]", "-32600"),
        (b"{}", "jsonrpc"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"bdev_get_bdev\"}", "did you mean bdev_get_bdevs"),
        (b"\xff\xfe{}", "-32700"),
        (b"{\"a\":\"\xff\"}", "-32700"),
    ] {
        let answer = daemon.send(bytes);
        assert!(answer.contains(word), "{bytes:?}: {answer}");
    }
    let deep = "[".repeat(100_000);
    assert!(daemon.send(deep.as_bytes()).contains("deep"));
    let long = format!("{{\"{}", "x".repeat(5 << 20));
    daemon.send(long.as_bytes());
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..300 {
        let mut bytes = Vec::new();
        for _ in 0..64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.push(b"{}[]\",:\\ae0 \n\xff"[usize::try_from(state % 14).unwrap()]);
        }
        daemon.send(&bytes);
    }
    daemon.call("spdk_get_version", json!({})).unwrap();
    daemon.end();
}

#[test]
fn pipelined_requests_and_batches_are_answered_in_order() {
    let daemon = Daemon::start("pipelined", &[]);
    let one = |id: u32| json!({"jsonrpc": "2.0", "id": id, "method": "spdk_get_version"}).to_string();
    let notification = json!({"jsonrpc": "2.0", "method": "spdk_get_version"}).to_string();
    let sent = format!("{}\n{notification}{}[{},{notification},7]", one(1), one(2), one(3));
    let answers: Vec<Value> = serde_json::Deserializer::from_str(&daemon.send(sent.as_bytes()))
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(answers.len(), 3);
    assert_eq!((answers[0]["id"].as_u64(), answers[1]["id"].as_u64()), (Some(1), Some(2)));
    let batch = answers[2].as_array().unwrap();
    assert_eq!((batch.len(), batch[0]["id"].as_u64()), (2, Some(3)));
    assert_eq!(batch[1]["error"]["code"], -32600);
    daemon.end();
}

#[test]
fn every_method_names_an_unknown_parameter_and_a_wrong_type() {
    let daemon = Daemon::start("names", &[]);
    let methods = daemon.call("rpc_get_methods", json!({"current": true})).unwrap();
    for method in methods.as_array().unwrap().iter().map(|name| name.as_str().unwrap()) {
        let (code, words) = daemon.call(method, json!({"no such parameter": 1})).unwrap_err();
        assert_eq!(code, -32602, "{method}: {words}");
        assert!(words.contains(method) && words.contains("no such parameter"), "{method}: {words}");
    }
    for (method, params, code, word) in [
        (
            "bdev_null_create",
            json!({"name": 5, "num_blocks": 8, "block_size": 512}),
            -32602,
            "parameter name",
        ),
        ("bdev_null_create", json!({"name": "n"}), -32602, "num_blocks is missing"),
        ("bdev_null_create", json!({"name": "n", "num_blocks": 8, "block_size": 513}), -32602, "block_size"),
        ("bdev_get_bdevs", json!({"name": "nowhere"}), -19, "nowhere"),
        ("bdev_malloc_delete", json!({"name": "nowhere"}), -19, "nowhere"),
        ("nvmf_delete_subsystem", json!({"nqn": NQN}), -19, NQN),
        ("nvmf_get_stats", json!({"tgt_name": "other"}), -19, "other"),
        (
            "nvmf_subsystem_add_ns",
            json!({"nqn": NQN, "namespace": {"nsid": "1"}}),
            -32602,
            "namespace.bdev_name",
        ),
        ("nvmf_create_transport", json!({"trtype": "RDMA"}), -32602, "RDMA"),
        ("nvmf_create_transport", json!({"trtype": "TCP", "zcopy": true}), -32602, "zcopy"),
        ("framework_get_config", json!({"name": "nowhere"}), -19, "nowhere"),
        ("log_set_level", json!({"level": "LOUD"}), -32602, "LOUD"),
        ("penstock_reactor_set_poll_mode", json!({"reactor": 9, "mode": "busy"}), -19, "reactor 9"),
        ("framework_start_init", json!({}), -1, "framework_start_init"),
    ] {
        let (given, words) = daemon.call(method, params.clone()).unwrap_err();
        assert_eq!(given, code, "{method} {params}: {words}");
        assert!(words.contains(word), "{method} {params}: {words}");
    }
    daemon.end();
}

#[test]
fn the_state_file_brings_everything_back_and_so_does_load_config() {
    let state = ["--state", "state.json"];
    let daemon = Daemon::start("state", &state);
    daemon.call("bdev_malloc_create", malloc("m0")).unwrap();
    daemon.call("bdev_null_create", json!({"name": "n0", "num_blocks": 100, "block_size": 4096})).unwrap();
    daemon.call("bdev_set_qos_limit", json!({"name": "m0", "rw_ios_per_sec": 5000})).unwrap();
    daemon.call("nvmf_create_transport", json!({"trtype": "TCP", "max_queue_depth": 64})).unwrap();
    daemon.call("nvmf_create_subsystem", json!({"nqn": NQN, "serial_number": "S1"})).unwrap();
    let namespace = json!({"bdev_name": "m0", "nsid": 3});
    daemon.call("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": namespace})).unwrap();
    let address = json!({"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "0"});
    daemon.call("nvmf_subsystem_add_listener", json!({"nqn": NQN, "listen_address": address})).unwrap();
    daemon
        .call("nvmf_subsystem_add_host", json!({"nqn": NQN, "host": "nqn.2026-11.io.penstock:host"}))
        .unwrap();
    daemon
        .call("penstock_reactor_set_poll_mode", json!({"reactor": 1, "mode": "adaptive", "spin_us": 7}))
        .unwrap();
    let saved = daemon.call("save_config", json!({})).unwrap();
    let daemon = Daemon::start_in(daemon.end(), &state);
    assert_eq!(daemon.call("save_config", json!({})).unwrap(), saved);
    daemon.end();
    let fresh = Daemon::start("loaded", &[]);
    fresh.call("load_config", saved.clone()).unwrap();
    assert_eq!(fresh.call("save_config", json!({})).unwrap(), saved);
    let (_, words) = fresh.call("load_config", saved).unwrap_err();
    assert!(words.contains("bdev_malloc_create was refused") && words.contains("m0"), "{words}");
    fresh.end();
}

#[test]
fn filters_are_made_saved_and_deleted_from_the_top() {
    let daemon = Daemon::start("filters", &["--state", "state.json"]);
    daemon.call("bdev_malloc_create", malloc("m0")).unwrap();
    daemon.call("bdev_passthru_create", json!({"name": "p0", "base_bdev_name": "m0"})).unwrap();
    let latencies = json!({"name": "d0", "base_bdev_name": "p0", "avg_read_latency": 10, "p99_read_latency": 20,
        "avg_write_latency": 30, "p99_write_latency": 40});
    daemon.call("bdev_delay_create", latencies).unwrap();
    let update = json!({"delay_bdev_name": "d0", "latency_type": "avg_read", "latency_us": 11});
    daemon.call("bdev_delay_update_latency", update).unwrap();
    assert_eq!(daemon.call("bdev_error_create", json!({"base_name": "d0"})).unwrap(), "EE_d0");
    let rule = json!({"name": "EE_d0", "io_type": "read", "error_type": "failure", "num": 3});
    daemon.call("bdev_error_inject_error", rule).unwrap();
    let parts = daemon.call("bdev_split_create", json!({"base_bdev": "EE_d0", "split_count": 2})).unwrap();
    assert_eq!(parts, json!(["EE_d0p0", "EE_d0p1"]));
    let (code, words) =
        daemon.call("bdev_passthru_create", json!({"name": "p1", "base_bdev_name": "m0"})).unwrap_err();
    assert!(code == -16 && words.contains("m0 is claimed"), "{code} {words}");
    let saved = daemon.call("save_config", json!({})).unwrap();
    let daemon = Daemon::start_in(daemon.end(), &["--state", "state.json"]);
    assert_eq!(daemon.call("save_config", json!({})).unwrap(), saved);
    daemon.call("bdev_split_delete", json!({"base_bdev": "EE_d0"})).unwrap();
    daemon.call("penstock_bdev_delete", json!({"name": "m0"})).unwrap();
    assert_eq!(daemon.call("bdev_get_bdevs", json!({})).unwrap(), json!([]));
    daemon.end();
}

#[test]
fn a_configuration_file_sets_the_daemon_up_and_a_wrong_one_is_named() {
    let dir = std::env::temp_dir().join(format!("penstock-daemon-{}-file", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let call =
        "{ method = \"bdev_null_create\", params = { name = \"n0\", num_blocks = 8, block_size = 512 } }";
    std::fs::write(
        dir.join("good.toml"),
        format!("[[subsystems]]\nsubsystem = \"bdev\"\nconfig = [{call}]\n"),
    )
    .unwrap();
    std::fs::write(
        dir.join("bad.toml"),
        "[[subsystems]]\nsubsystem = \"bdev\"\nconfig = [{ method = \"bdev_nul_create\" }]\n",
    )
    .unwrap();
    let bad = command(&dir, &["--config", "bad.toml"]).stderr(Stdio::piped()).output().unwrap();
    let words = String::from_utf8(bad.stderr).unwrap();
    assert!(
        !bad.status.success() && words.contains("bad.toml") && words.contains("bdev_nul_create"),
        "{words}"
    );
    let daemon = Daemon::start_in(dir, &["--config", "good.toml", "--wait-for-rpc"]);
    let (code, words) = daemon.call("bdev_get_bdevs", json!({})).unwrap_err();
    assert!(code == -1 && words.contains("framework_start_init"), "{words}");
    daemon.call("framework_start_init", json!({})).unwrap();
    assert_eq!(daemon.call("bdev_get_bdevs", json!({})).unwrap()[0]["name"], "n0");
    daemon.end();
}

#[test]
fn the_tool_shows_tables_and_says_what_to_do() {
    let daemon = Daemon::start("tool", &[]);
    assert_eq!(daemon.says(&["bdev", "list"]), "no bdevs; make one with penstock bdev create\n");
    assert_eq!(daemon.says(&["bdev", "create", "malloc", "m0", "8M"]), "made m0\n");
    daemon.says(&["nvmf", "create", NQN, "--any-host", "--ns", "m0"]);
    let list = daemon.says(&["bdev", "list"]);
    let words: Vec<&str> = list.split_whitespace().collect();
    let head = ["NAME", "KIND", "USED", "BY", "BLOCK", "SIZE"];
    let row = ["m0", "Malloc", "disk", "NVMe-oF", "subsystem", NQN, "512", "8.0", "MiB"];
    assert_eq!(words, [&head[..], &row].concat());
    let json: Value = serde_json::from_str(&daemon.says(&["--json", "bdev", "list"])).unwrap();
    assert_eq!(json[0]["num_blocks"], 16384);
    assert!(daemon.says(&["top", "-n", "1", "-i", "0.1"]).contains("NVMe/TCP: 0 controllers"));
    assert!(daemon.says(&["completions", "bash"]).contains("penstock"));
    let refused = daemon.tool(&["bdev", "delete", "nowhere"]);
    let words = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(words, "penstock: there is no bdev nowhere; bdev_get_bdevs lists them (-19)\n");
    let socket = daemon.socket();
    daemon.end();
    let alone =
        Command::new(env!("CARGO_BIN_EXE_penstock")).arg("-s").arg(socket).arg("status").output().unwrap();
    assert!(
        String::from_utf8(alone.stderr)
            .unwrap()
            .contains("start penstockd, or name its socket with --socket")
    );
}

#[test]
fn the_tool_makes_filters_and_lets_them_go_wrong() {
    let daemon = Daemon::start("filters", &[]);
    daemon.says(&["bdev", "create", "malloc", "m0", "8M"]);
    assert_eq!(daemon.says(&["bdev", "create", "delay", "d0", "m0", "--read", "20"]), "made d0\n");
    assert_eq!(daemon.says(&["bdev", "create", "passthru", "p0", "d0"]), "made p0\n");
    assert_eq!(daemon.says(&["bdev", "create", "error", "p0"]), "made EE_p0\n");
    assert_eq!(daemon.says(&["bdev", "create", "split", "EE_p0", "2"]), "made EE_p0p0, EE_p0p1\n");
    daemon.says(&["bdev", "latency", "d0", "write-p99", "500"]);
    daemon
        .says(&["bdev", "inject", "EE_p0", "write", "failure", "--num", "3", "--lba", "8", "--blocks", "8"]);
    daemon.says(&["bdev", "inject", "EE_p0", "clear"]);
    daemon.says(&["bdev", "qos", "EE_p0p0", "--iops", "1000", "--write-mib", "5"]);
    let shown = |name| daemon.call("bdev_get_bdevs", json!({"name": name})).unwrap()[0].clone();
    assert_eq!(shown("d0")["driver_specific"]["delay"]["avg_read_latency"], 20);
    assert_eq!(shown("d0")["driver_specific"]["delay"]["p99_write_latency"], 500);
    assert_eq!(shown("EE_p0p1")["num_blocks"], 8192);
    assert_eq!(shown("EE_p0p0")["assigned_rate_limits"]["w_mbytes_per_sec"], 5);
    let refused = daemon.tool(&["bdev", "inject", "EE_p0", "write", "corrupt-data", "--xor", "0"]);
    assert!(!refused.status.success());
    daemon.end();
}

#[test]
fn metrics_are_served_and_nothing_else() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let daemon = Daemon::start("metrics", &["--metrics", &address]);
    daemon.call("bdev_malloc_create", malloc("m0")).unwrap();
    daemon.call("nvmf_create_transport", json!({"trtype": "TCP"})).unwrap();
    let ask = |head: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer));
        answer
    };
    let text = ask("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    for line in [
        "penstock_build_info{version=",
        "penstock_reactor_busy_seconds_total{reactor=\"1\"}",
        "penstock_bdev_ops_total{bdev=\"m0\",op=\"read\"} 0",
        "penstock_bdev_latency_seconds_bucket{le=\"+Inf\",bdev=\"m0\",op=\"read\"} 0",
        "penstock_nvmf_connections{thread=\"reactor_0\"} 0",
        "penstock_memory_mapped_bytes ",
        "# EOF",
    ] {
        assert!(text.contains(line), "no {line} in:\n{text}");
    }
    assert!(
        ask("POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 405")
    );
    assert!(ask("GET /etc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 404"));
    daemon.end();
}
