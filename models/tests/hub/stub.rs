//! A small Hub in this process: its HTTP API on one port, the store of large files on another, and what can go
//! wrong with both.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::digest::{SHA256, digest};
use serde_json::json;

/// Everyone may have it but strangers.
pub(crate) const GOOD_TOKEN: &str = "hf_good";
/// The Hub knows whose it is; its account was let in nowhere.
pub(crate) const OUTSIDER_TOKEN: &str = "hf_outsider";

/// Runs until the test's process ends.
#[derive(Clone)]
pub(crate) struct Stub {
    /// What goes into `HF_ENDPOINT`.
    pub(crate) endpoint: String,
    store: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    models: BTreeMap<String, Model>,
    renamed: BTreeMap<String, String>,
    faults: Vec<(String, Fault)>,
    asked: Vec<Asked>,
}

/// A file's name and what is in it.
pub(crate) type NamedFile<'a> = (&'a str, &'a [u8]);

/// A repository.
#[derive(Clone, Default)]
pub(crate) struct Model {
    access: Access,
    /// What branches, tags and commits hold.
    commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    refs: BTreeMap<String, String>,
    large: BTreeSet<String>,
}

/// Who may have it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Access {
    #[default]
    Everyone,
    Gated,
    Private,
}

/// What goes wrong, once, with the next request for a file.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The Hub answers so.
    Status(u16, &'static str),
    /// Whoever holds the bytes sends so many of them and hangs up.
    CutAfter(usize),
    /// Whoever holds the bytes sends so many of them and then waits for the other side to go.
    HangAfter(usize),
    /// The whole file comes whatever range was asked for.
    IgnoreRange,
    /// One byte is another.
    Corrupt,
    /// The answer says that the file is this long, and it is.
    Shorter(usize),
    /// No answer comes.
    Silence,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Whether it was the Hub, or the store of large files.
    pub(crate) of_hub: bool,
    pub(crate) method: String,
    pub(crate) path: String,
    /// The first byte asked for.
    pub(crate) from: Option<usize>,
    pub(crate) token: Option<String>,
}

impl Model {
    /// Open to everyone, with one commit that is `main`. Files that end in `.safetensors` or `.gguf` are large.
    pub(crate) fn new(files: &[NamedFile<'_>]) -> Self {
        Self::default().commit(&commit('a'), "main", files)
    }

    /// Another commit with these files, and the branch or tag that stands for it.
    pub(crate) fn commit(mut self, commit: &str, revision: &str, files: &[NamedFile<'_>]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
        self.commits.insert(commit.to_owned(), files.collect());
        self.refs.insert(revision.to_owned(), commit.to_owned());
        self.refs.insert(commit.to_owned(), commit.to_owned());
        let names = self.commits.values().flat_map(BTreeMap::keys);
        self.large = names
            .filter(|name| name.ends_with(".safetensors") || name.ends_with(".gguf"))
            .cloned()
            .collect();
        self
    }

    /// Not open to everyone.
    pub(crate) fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }
}

/// The name of a commit.
pub(crate) fn commit(letter: char) -> String {
    letter.to_string().repeat(40)
}

/// What the Hub calls a content.
pub(crate) fn etag_of(file: &str, bytes: &[u8]) -> String {
    if file.ends_with(".safetensors") || file.ends_with(".gguf") {
        return digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:040x}", hasher.finish())
}

impl Stub {
    /// Starts one that holds these models.
    pub(crate) fn new(models: &[(&str, Model)]) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let store = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
        let models = models.iter().map(|(name, model)| ((*name).to_owned(), model.clone())).collect();
        let stub = Self {
            endpoint: format!("http://{}", address(&hub)),
            store: format!("http://{}", address(&store)),
            state: Arc::new(Mutex::new(State { models, ..State::default() })),
        };
        for (listener, of_hub) in [(hub, true), (store, false)] {
            let stub = stub.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let stub = stub.clone();
                    std::thread::spawn(move || stub.converse(&stream, of_hub));
                }
            });
        }
        stub
    }

    /// Puts another model in the place of one.
    pub(crate) fn set(&self, name: &str, model: Model) {
        self.state().models.insert(name.to_owned(), model);
    }

    /// The model is called `name` instead of `old`.
    pub(crate) fn rename(&self, old: &str, name: &str) {
        self.state().renamed.insert(old.to_owned(), name.to_owned());
    }

    /// What goes wrong with the next requests for `file`, in this order.
    pub(crate) fn fail(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        let faults = faults.into_iter().map(|fault| (file.to_owned(), fault));
        self.state().faults.extend(faults);
    }

    /// What was asked since this was called last.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers one request after the other.
    fn converse(&self, stream: &TcpStream, of_hub: bool) {
        let mut reader = BufReader::new(stream);
        while let Some(asked) = read_request(&mut reader, of_hub) {
            self.state().asked.push(asked.clone());
            let goes_on =
                if of_hub { self.answer(stream, &asked) } else { self.send_large(stream, &asked) };
            if goes_on.is_none() {
                return;
            }
        }
    }

    /// As the Hub. `None` when the connection is at its end.
    fn answer(&self, stream: &TcpStream, asked: &Asked) -> Option<()> {
        let (path, _) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let renamed = self.state().renamed.clone();
        if let Some((old, new)) = renamed.iter().find(|(old, _)| path.contains(old.as_str())) {
            let location = format!("location: {}\r\n", path.replace(old.as_str(), new));
            return send(stream, asked, 307, &location, b"");
        }
        if asked.token.as_deref().is_some_and(|token| token != GOOD_TOKEN && token != OUTSIDER_TOKEN) {
            let said = "x-error-message: Invalid credentials in Authorization header\r\n";
            return send(stream, asked, 401, said, b"");
        }
        if let Some(rest) = path.strip_prefix("/api/models/") {
            let (name, revision) = rest.split_once("/revision/")?;
            return self.list(stream, asked, name, &revision.replace("%2F", "/"));
        }
        if let Some(rest) = path.strip_prefix("/api/resolve-cache/") {
            let (name, rest) = rest.split_once("/at/")?;
            return self.send_small(stream, asked, name, rest);
        }
        let (name, rest) = path.strip_prefix('/')?.split_once("/resolve/")?;
        self.resolve(stream, asked, name, rest)
    }

    fn list(&self, stream: &TcpStream, asked: &Asked, name: &str, revision: &str) -> Option<()> {
        if let Some(Fault::Status(status, headers)) = self.fault("list", |f| matches!(f, Fault::Status(..)))
        {
            return send(stream, asked, status, headers, b"");
        }
        if self.fault("list", |f| matches!(f, Fault::Silence)).is_some() {
            return wait_until_gone(stream);
        }
        let model = self.state().models.get(name).cloned();
        let hidden =
            |model: &Model| model.access == Access::Private && asked.token.as_deref() != Some(GOOD_TOKEN);
        let Some(model) = model.filter(|model| !hidden(model)) else {
            let status = if asked.token.is_some() { 404 } else { 401 };
            return send(stream, asked, status, "x-error-code: RepoNotFound\r\n", b"");
        };
        let Some(commit) = model.refs.get(revision) else {
            return send(stream, asked, 404, "x-error-code: RevisionNotFound\r\n", b"");
        };
        let siblings: Vec<_> =
            model.commits[commit].keys().map(|name| json!({ "rfilename": name })).collect();
        let body = json!({ "id": name, "sha": commit, "siblings": siblings }).to_string();
        send(stream, asked, 200, "content-type: application/json\r\n", body.as_bytes())
    }

    /// The address that every client knows: sends on to where the bytes are.
    fn resolve(&self, stream: &TcpStream, asked: &Asked, name: &str, rest: &str) -> Option<()> {
        let (commit, file) = rest.split_once('/')?;
        if let Some(Fault::Status(status, headers)) = self.fault(file, |f| matches!(f, Fault::Status(..))) {
            return send(stream, asked, status, headers, b"");
        }
        let model = self.state().models.get(name).cloned()?;
        if model.access == Access::Gated && asked.token.as_deref() != Some(GOOD_TOKEN) {
            let status = if asked.token.is_some() { 403 } else { 401 };
            return send(stream, asked, status, "x-error-code: GatedRepo\r\n", b"");
        }
        let Some(bytes) = model.commits.get(commit).and_then(|files| files.get(file)) else {
            return send(stream, asked, 404, "x-error-code: EntryNotFound\r\n", b"");
        };
        if !model.large.contains(file) {
            let location = format!("location: /api/resolve-cache/{name}/at/{rest}?etag=1\r\n");
            return send(stream, asked, 307, &location, b"");
        }
        let headers = format!(
            "location: {}/{name}/at/{rest}?signature=1\r\nx-repo-commit: {commit}\r\nx-linked-size: {}\r\n\
             x-linked-etag: \"{}\"\r\netag: \"of the redirect\"\r\n",
            self.store,
            bytes.len(),
            etag_of(file, bytes),
        );
        send(stream, asked, 302, &headers, b"")
    }

    fn send_small(&self, stream: &TcpStream, asked: &Asked, name: &str, rest: &str) -> Option<()> {
        let (commit, file) = rest.split_once('/')?;
        let bytes = self.state().models.get(name)?.commits.get(commit)?.get(file)?.clone();
        let headers = format!("x-repo-commit: {commit}\r\netag: W/\"{}\"\r\n", etag_of(file, &bytes));
        self.send_bytes(stream, asked, file, (&headers, bytes))
    }

    /// As the store of large files, which knows neither models nor tokens.
    fn send_large(&self, stream: &TcpStream, asked: &Asked) -> Option<()> {
        let (path, _) = asked.path.split_once('?')?;
        let (name, rest) = path.strip_prefix('/')?.split_once("/at/")?;
        let (commit, file) = rest.split_once('/')?;
        let bytes = self.state().models.get(name)?.commits.get(commit)?.get(file)?.clone();
        self.send_bytes(stream, asked, file, ("etag: \"of the store\"\r\n", bytes))
    }

    fn send_bytes(
        &self,
        stream: &TcpStream,
        asked: &Asked,
        file: &str,
        (headers, mut bytes): (&str, Vec<u8>),
    ) -> Option<()> {
        let fault = if asked.method == "HEAD" {
            None
        } else {
            self.fault(file, |fault| !matches!(fault, Fault::Status(..)))
        };
        let mut from = asked.from.unwrap_or(0);
        let (mut sent, mut hang) = (usize::MAX, false);
        match fault {
            Some(Fault::CutAfter(count)) => sent = count,
            Some(Fault::HangAfter(count)) => (sent, hang) = (count, true),
            Some(Fault::IgnoreRange) => from = 0,
            Some(Fault::Corrupt) => bytes[from] ^= 1,
            Some(Fault::Shorter(length)) => bytes.truncate(length),
            Some(Fault::Silence) => return wait_until_gone(stream),
            Some(Fault::Status(..)) | None => {}
        }
        let size = bytes.len();
        let part = &bytes[from..];
        let (status, range) = match from {
            0 => (200, String::new()),
            _ => (206, format!("content-range: bytes {from}-{}/{size}\r\n", size - 1)),
        };
        if sent >= part.len() {
            return send(stream, asked, status, &format!("{headers}{range}"), part);
        }
        let head =
            format!("HTTP/1.1 {status} Fine\r\n{headers}{range}content-length: {}\r\n\r\n", part.len());
        let mut stream = stream;
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&part[..sent])).ok()?;
        if hang { wait_until_gone(stream) } else { None }
    }

    /// The next thing of this kind that goes wrong with `file`, if any.
    fn fault(&self, file: &str, kind: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let mut state = self.state();
        let first = state.faults.iter().position(|(of, fault)| of == file && kind(fault))?;
        Some(state.faults.remove(first).1)
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>, of_hub: bool) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut asked = Asked { of_hub, method, path, from: None, token: None };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { return Some(asked) };
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.from = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            "authorization" => asked.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
}

fn send(stream: &TcpStream, asked: &Asked, status: u16, headers: &str, body: &[u8]) -> Option<()> {
    let head = format!("HTTP/1.1 {status} Fine\r\n{headers}content-length: {}\r\n\r\n", body.len());
    let mut stream = stream;
    stream.write_all(head.as_bytes()).ok()?;
    if asked.method == "HEAD" { Some(()) } else { stream.write_all(body).ok() }
}

fn wait_until_gone(mut stream: &TcpStream) -> Option<()> {
    let _ = stream.read(&mut [0]);
    None
}
