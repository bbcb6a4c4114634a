//! One run of the binary with all its processes.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::client::Client;
use crate::{BETWEEN_LOOKS, DEADLINE, faults};

/// What to start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The binary: `env!("CARGO_BIN_EXE_lockstep-under-test")`, which only a test of this package knows.
    pub program: &'static str,
    /// How many ranks.
    pub ranks: u32,
    /// More flags of `serve`.
    pub flags: Vec<String>,
    /// More of its environment.
    pub environment: Vec<(String, OsString)>,
}

impl Setup {
    /// The demo model on one rank with a small KV cache.
    pub fn demo(program: &'static str) -> Self {
        Self { program, ranks: 1, flags: vec![], environment: vec![] }
    }

    /// On so many ranks.
    #[must_use]
    pub fn ranks(mut self, ranks: u32) -> Self {
        self.ranks = ranks;
        self
    }

    /// With these flags as well.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// With this variable in its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Panics
    /// When it ends before.
    pub fn start(&self) -> Cluster {
        let mut cluster = self.begin();
        cluster.wait_until_ready();
        cluster
    }

    /// Starts it and waits for nothing: nobody can speak to it before [`Cluster::wait_until_ready`].
    pub fn begin(&self) -> Cluster {
        let folder = tempfile::tempdir().expect("a folder for sockets");
        let mut child = Command::new(self.program)
            .args(["--hostname", "127.0.0.1", "--port", "0", "--log-level", "info"])
            .args(["--num-shard", &self.ranks.to_string()])
            .args(&self.flags)
            .env("XDG_RUNTIME_DIR", folder.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary is there");
        let printed = Lines::collect(child.stdout.take().expect("it is piped"));
        let log = Lines::collect(child.stderr.take().expect("it is piped"));
        Cluster { child, printed, log, folder, url: String::new() }
    }
}

/// A running cluster. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Cluster {
    child: Child,
    printed: Lines,
    log: Lines,
    folder: TempDir,
    url: String,
}

impl Cluster {
    /// Speaks to it.
    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The launcher's process.
    pub fn launcher(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it printed on standard output.
    pub fn printed(&self) -> String {
        self.printed.text()
    }

    /// What it and its processes logged.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until the log holds `text`.
    pub fn wait_for_log(&self, text: &str) {
        self.log.wait_for(|line| line.contains(text), text);
    }

    /// How many lines of the log hold `text`.
    pub fn count_in_log(&self, text: &str) -> usize {
        let lines = self.log.shared.0.lock().expect("nobody panics with it");
        lines.lines.iter().filter(|line| line.contains(text)).count()
    }

    /// How many sequences were not complete yet when a group was lost, by loss.
    pub fn sequences_at_losses(&self) -> Vec<usize> {
        let lines = self.log.shared.0.lock().expect("nobody panics with it");
        let losses = lines.lines.iter().filter(|line| line.contains("shards lost"));
        let counts = losses.filter_map(|line| line.split_once("sequences=")?.1.split_whitespace().next());
        counts.map(|count| count.parse().expect("a number of sequences")).collect()
    }

    /// How often the log has said that the service is ready again.
    pub fn returns(&self) -> usize {
        self.count_in_log("the service is ready again")
    }

    /// Where its sockets are.
    pub fn sockets(&self) -> &Path {
        self.folder.path()
    }

    /// Everything there is in the folder for its sockets, however deep.
    pub fn left_in_folder(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.folder.path().to_path_buf()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path.clone());
                }
                found.push(path);
            }
        }
        found
    }

    /// Sends the launcher a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.launcher(), signal).expect("the launcher is alive");
    }

    /// Waits until the launcher has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the launcher does not end");
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Waits until it says that it is ready.
    ///
    /// # Panics
    /// When it ends before.
    pub fn wait_until_ready(&mut self) {
        // The last line of what it prints once it is ready.
        let ready = self.printed.wait_for(|line| line.starts_with("  curl "), "the line to paste");
        let start = ready.find("http://").expect("the line names the address");
        let path = ready.find("/generate").expect("the line names a route");
        ready[start..path].clone_into(&mut self.url);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let processes = faults::descendants(self.launcher());
        // Its children die with it; those that do not are a failure of theirs, not of the next test.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for process in processes {
            let _ = kill_process(process, Signal::KILL);
        }
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the log of a failed test belongs beside its panic")]
            {
                eprintln!("--- printed\n{}\n--- log\n{}", self.printed(), self.log());
            }
        }
    }
}

/// Lines of a process, collected as they come.
#[derive(Clone, Debug)]
struct Lines {
    shared: Arc<(Mutex<Collected>, Condvar)>,
}

#[derive(Debug, Default)]
struct Collected {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn collect(from: impl Read + Send + 'static) -> Self {
        let lines = Self { shared: Arc::default() };
        let shared = Arc::clone(&lines.shared);
        std::thread::spawn(move || {
            let (collected, changed) = &*shared;
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                collected.lock().expect("nobody panics with it").lines.push(line);
                changed.notify_all();
            }
            collected.lock().expect("nobody panics with it").ended = true;
            changed.notify_all();
        });
        lines
    }

    fn text(&self) -> String {
        self.shared.0.lock().expect("nobody panics with it").lines.join("\n")
    }

    /// The first line that `is_it`.
    fn wait_for(&self, is_it: impl Fn(&str) -> bool, what: &str) -> String {
        let (collected, changed) = &*self.shared;
        let start = Instant::now();
        let mut collected = collected.lock().expect("nobody panics with it");
        loop {
            if let Some(line) = collected.lines.iter().find(|line| is_it(line)) {
                return line.clone();
            }
            let patience = DEADLINE.checked_sub(start.elapsed());
            let (true, Some(patience)) = (!collected.ended, patience) else {
                // What was collected is printed on the way out, which locks it again.
                drop(collected);
                panic!("{what} never came");
            };
            collected = changed.wait_timeout(collected, patience).expect("nobody panics with it").0;
        }
    }
}
