//! One process of a unit: started in its own process group, signalled, reaped.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use lockstep_process::tasks::{Fate, Tasks};
use lockstep_process::telemetry::LogFormat;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::LastWords;
use crate::output::{self, Tail};
use crate::plan::CommandLine;
use crate::supervisor::Member;

/// Terminate, then kill, then kill once more for good measure: nobody signals a process more often before
/// it is reaped, and one signal too many may be dropped.
const SIGNALS_WAITING: usize = 4;
/// What a dead process wrote is in the pipe already; only an heir of its pipe can make us wait.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// A process ended and was reaped, or could not be started.
#[derive(Debug)]
pub(crate) struct Exited {
    pub(crate) member: Member,
    pub(crate) last_words: LastWords,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    signals: mpsc::Sender<Signal>,
}

/// How processes are started.
#[derive(Clone, Debug)]
pub(crate) struct Starter {
    pub(crate) program: std::path::PathBuf,
    pub(crate) format: LogFormat,
    pub(crate) tasks: Tasks,
    pub(crate) exits: mpsc::Sender<Exited>,
}

impl Starter {
    /// Starts a process. Its end, or that it could not be started, is reported once through `exits`.
    pub(crate) fn start(&self, line: &CommandLine, member: Member) -> Process {
        let (signals, inbox) = mpsc::channel(SIGNALS_WAITING);
        let exits = self.exits.clone();
        let format = self.format;
        let name = line.process.clone();
        // Spawned here and not in the task: the kernel tells a child of its parent's death when the *thread*
        // that made it ends.
        let spawned = spawn(&self.program, line);
        self.tasks.spawn("process", Fate::Log, async move {
            let last_words = match spawned {
                Ok(child) => watch(child, name, format, inbox).await,
                Err(error) => {
                    LastWords { process: name, end: format!("not started: {error}"), lines: vec![] }
                }
            };
            // The receiver is gone only when the launcher leaves.
            let _ = exits.send(Exited { member, last_words }).await;
        });
        Process { signals }
    }
}

impl Process {
    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        let _ = self.signals.try_send(Signal::TERM);
    }

    /// Ends it.
    pub(crate) fn kill(&self) {
        let _ = self.signals.try_send(Signal::KILL);
    }
}

/// Names this process as tools such as `top` show it.
pub(crate) fn name_this(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        // A process without its name works as well.
        let _ = rustix::thread::set_name(&name);
    }
}

/// What ranks on GPUs tell NCCL, where nobody has told it anything else: in recorded steps it would register memory that
/// belongs to the recordings, whose pages they share.
const NCCL: [(&str, &str); 1] = [("NCCL_GRAPH_REGISTER", "0")];

fn spawn(program: &std::path::Path, line: &CommandLine) -> io::Result<Child> {
    Command::new(program)
        .arg0("lockstep")
        .args(&line.arguments)
        .envs(NCCL.iter().filter(|(name, _)| std::env::var_os(name).is_none()).copied())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

/// Passes on what the process says and what it is told, until it is reaped.
async fn watch(
    mut child: Child,
    name: String,
    format: LogFormat,
    inbox: mpsc::Receiver<Signal>,
) -> LastWords {
    let tail = Tail::default();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let end = {
        let talk = talk(stdout, stderr, &name, format, &tail);
        let reaped = reap(&mut child, inbox);
        tokio::pin!(talk, reaped);
        let mut said_all = false;
        let end = loop {
            tokio::select! {
                biased;
                () = &mut talk, if !said_all => said_all = true,
                end = &mut reaped => break end,
            }
        };
        if !said_all {
            let _ = timeout(LAST_LINES_TIMEOUT, talk).await;
        }
        end
    };
    LastWords { end: describe(&end), lines: tail.lines(), process: name }
}

async fn talk(
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    name: &str,
    format: LogFormat,
    tail: &Tail,
) {
    let said_to_nobody = Tail::default();
    let out = async {
        if let Some(stdout) = stdout {
            output::forward(stdout, name, format, &said_to_nobody).await;
        }
    };
    let err = async {
        if let Some(stderr) = stderr {
            output::forward(stderr, name, format, tail).await;
        }
    };
    tokio::join!(out, err);
}

/// Signals reach the group only while its leader is not reaped, so that its number cannot be another's.
async fn reap(child: &mut Child, mut inbox: mpsc::Receiver<Signal>) -> io::Result<ExitStatus> {
    let mut listening = true;
    loop {
        let signal = tokio::select! {
            biased;
            end = child.wait() => return end,
            signal = inbox.recv(), if listening => signal,
        };
        let Some(signal) = signal else {
            listening = false;
            continue;
        };
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = group {
            // It may be dead and waiting to be reaped; that is what the signal was for.
            let _ = kill_process_group(group, signal);
        }
    }
}

fn describe(end: &io::Result<ExitStatus>) -> String {
    match end {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        },
        Err(error) => format!("an unknown status: {error}"),
    }
}
