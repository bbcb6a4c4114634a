//! `lockstep download` as a person or a script runs it, against a small Hub on this host.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use stub::{Fault, GOOD_TOKEN, Model, NamedFile, Stub, commit, etag_of};

#[path = "../../models/tests/hub/stub.rs"]
#[expect(dead_code, reason = "shared with the tests of the models crate, which use all of it")]
mod stub;

const NAME: &str = "org/small";
const FILE: &str = "model.safetensors";
const SMALL: [NamedFile<'_>; 2] = [("config.json", b"{}"), ("tokenizer.json", b"{}")];

struct Setting {
    stub: Stub,
    home: tempfile::TempDir,
    weights: Vec<u8>,
}

impl Setting {
    fn new() -> Self {
        let weights: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
        let files = [SMALL[0], SMALL[1], (FILE, weights.as_slice())];
        let stub = Stub::new(&[(NAME, Model::new(&files))]);
        Self { stub, home: tempfile::tempdir().expect("a folder"), weights }
    }

    /// The binary with nothing of this host's environment.
    fn lockstep(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        self.set(&mut command).args(arguments);
        command
    }

    fn set<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env_clear().env("HF_HOME", self.home.path()).env("HF_ENDPOINT", &self.stub.endpoint)
    }

    fn blobs(&self) -> PathBuf {
        self.home.path().join("hub/models--org--small/blobs")
    }

    fn snapshot(&self) -> PathBuf {
        self.home.path().join("hub/models--org--small/snapshots").join(commit('a'))
    }

    fn blob(&self) -> PathBuf {
        self.blobs().join(etag_of(FILE, &self.weights))
    }

    fn check_whole(&self, output: &Output) {
        assert!(output.status.success(), "{}", said(output));
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            Path::new(printed.trim_end()),
            self.snapshot(),
            "the folder and nothing else is printed"
        );
        assert!(fs::read(self.snapshot().join(FILE)).expect("a file") == self.weights, "other bytes came");
        let left = fs::read_dir(self.blobs()).expect("a folder").flatten();
        let left: Vec<_> =
            left.filter(|entry| entry.path().to_string_lossy().contains("incomplete")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn run(command: &mut Command) -> Output {
    command.output().expect("it starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_folder_is_printed_and_found_again_offline() {
    let it = Setting::new();
    it.check_whole(&run(&mut it.lockstep(&["download", NAME])));
    it.check_whole(&run(&mut it.lockstep(&["download", "--model-id", NAME, "--revision", "main"])));
    it.stub.asked();
    it.check_whole(&run(&mut it.lockstep(&["download", "--model-id", NAME, "--offline"])));
    it.check_whole(&run(it.lockstep(&["download", NAME]).env("HF_HUB_OFFLINE", "1")));
    assert_eq!(it.stub.asked(), [], "offline asks nothing");
    it.check_whole(&run(it.lockstep(&["download", NAME]).env("HF_HUB_OFFLINE", "0")));
    assert!(!it.stub.asked().is_empty());
}

#[test]
fn the_token_of_the_environment_is_shown() {
    let it = Setting::new();
    for variable in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        run(it.lockstep(&["download", NAME]).env(variable, GOOD_TOKEN));
        let shown: Vec<_> =
            it.stub.asked().into_iter().filter(|asked| asked.of_hub).map(|a| a.token).collect();
        assert!(!shown.is_empty() && shown.iter().all(|token| token.as_deref() == Some(GOOD_TOKEN)));
    }
}

#[test]
fn a_killed_download_goes_on_in_the_next_process() {
    let it = Setting::new();
    it.stub.fail(FILE, [Fault::HangAfter(1_000_000)]);
    let mut child = it.lockstep(&["download", NAME]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.as_mut().expect("it starts");
    let partial = it.blob().with_extension("incomplete");
    while fs::metadata(&partial).map_or(0, |file| file.len()) < 1_000_000 {
        assert!(child.try_wait().expect("it is ours").is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    child.kill().expect("it runs");
    child.wait().expect("it is ours");
    assert!(!it.blob().exists(), "nothing partial has a final name");
    it.stub.asked();
    it.check_whole(&run(&mut it.lockstep(&["download", NAME])));
    let contents = it.stub.asked().into_iter().filter(|asked| !asked.of_hub && asked.method == "GET");
    assert_eq!(contents.map(|asked| asked.from).collect::<Vec<_>>(), [Some(1_000_000)]);
}

#[test]
fn several_processes_bring_each_file_once() {
    let it = Setting::new();
    let start = || it.lockstep(&["download", NAME]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let running: Vec<_> = (0..4).map(|_| start().expect("it starts")).collect();
    // Until the last has ended there may be files on their way.
    let ended: Vec<_> =
        running.into_iter().map(|child| child.wait_with_output().expect("it ends")).collect();
    ended.iter().for_each(|output| it.check_whole(output));
    let contents = it.stub.asked().into_iter().filter(|asked| !asked.of_hub && asked.method == "GET");
    assert_eq!(contents.count(), 1);
}

#[test]
fn a_disk_that_fills_up_keeps_what_came() {
    let it = Setting::new();
    // No file of more than a million bytes, and no signal for trying to write one.
    let mut limited = Command::new("/bin/sh");
    let script = "trap '' XFSZ; ulimit -f 1954; exec \"$0\" download org/small";
    let output = run(it.set(&mut limited).args(["-c", script, env!("CARGO_BIN_EXE_lockstep")]));
    assert!(!output.status.success());
    let said = said(&output);
    let expected = format!("lockstep: failed to store {FILE} of {NAME} in {}:", it.blobs().display());
    assert!(said.lines().last().is_some_and(|line| line.starts_with(&expected)), "{said}");
    assert!(said.contains("free some space"), "{said}");
    assert!(!it.blob().exists(), "nothing partial has a final name");
    it.stub.asked();
    it.check_whole(&run(&mut it.lockstep(&["download", NAME])));
    let contents = it.stub.asked().into_iter().filter(|asked| !asked.of_hub && asked.method == "GET");
    assert!(contents.into_iter().all(|asked| asked.from.is_some()), "it goes on");
}

#[test]
fn a_failure_is_one_line() {
    let it = Setting::new();
    let output = run(&mut it.lockstep(&["download", "org/absent"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let expected = format!(
        "lockstep: failed to find model org/absent on {}: there is none of that name that everyone may see; check \
         the name, or set HF_TOKEN if it is private\n",
        it.stub.endpoint
    );
    assert_eq!(said(&output), expected);
}

#[test]
fn a_plan_needs_the_configuration_alone() {
    let it = Setting::new();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/config.json");
    let config = fs::read(demo).expect("part of the demo model");
    it.stub.set("org/demo", Model::new(&[("config.json", &config), (FILE, b"not fetched")]));
    let output = run(&mut it.lockstep(&["plan", "--model-id", "org/demo", "--num-shard", "2"]));
    assert!(output.status.success(), "{}", said(&output));
    assert!(it.stub.asked().iter().all(|asked| !asked.path.contains(FILE)));
}

/// Serves from a name on the Hub until the ready line, and takes it down again.
#[test]
fn serve_downloads_first() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let names = ["config.json", "generation_config.json", FILE, "tokenizer.json", "tokenizer_config.json"];
    let files = names.map(|name| (name, fs::read(demo.join(name)).expect("part of the demo model")));
    let files: Vec<NamedFile<'_>> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let it = Setting::new();
    it.stub.set("org/demo", Model::new(&files));
    let arguments =
        ["serve", "--model-id", "org/demo", "--revision", "main", "--port", "0", "--hostname", "127.0.0.1"];
    let mut child =
        it.lockstep(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut stderr = child.stderr.take().expect("it is piped");
    let log = std::thread::spawn(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).map(|_| log)
    });
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let ready = lines.find_map(|line| line.ok().filter(|line| line.contains("serves org/demo on http://")));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .expect("it is ours");
    let status = child.wait().expect("it is ours");
    let log = log.join().expect("no panic").expect("it is text");
    assert!(ready.is_some() && status.success(), "{log}");
}
