//! Asks the Hub: which commit a revision is, which files it has, what a file is, and for its bytes.
//!
//! The token goes to the Hub and to no other host, wherever the Hub sends us.

use std::io::Read;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::cache::is_file_name;
use super::error::{HubError, TokenShown};
use super::{HubSource, Token};

/// More than any Hub needs, fewer than a loop.
const REDIRECTS: usize = 10;
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// The longest list of files that is read.
const LIST_BYTES: u64 = 64 << 20;
/// What is shown of a Hub's own words.
const MESSAGE_CHARS: usize = 200;

/// Speaks to one Hub about one version of one model.
pub(super) struct Client<'a> {
    agent: Agent,
    endpoint: &'a str,
    home: Origin,
    token: Option<&'a Token>,
    pub(super) name: &'a str,
    revision: &'a str,
}

/// A version of a model as the Hub lists it.
pub(super) struct Listing {
    pub(super) commit: String,
    /// Names of its files.
    pub(super) files: Vec<String>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// A file as the Hub has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) file: String,
    /// Names its content: a SHA-256 where the file is large.
    pub(super) etag: String,
    pub(super) size: u64,
}

/// A file's bytes on their way.
pub(super) struct Incoming {
    /// Where the first of them belongs.
    pub(super) start: u64,
    pub(super) bytes: Box<dyn Read>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Head,
    Get,
}

/// Scheme, host and port: who is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

/// What the Hub itself says of a file before it sends us elsewhere for its bytes.
#[derive(Debug, Default)]
struct Linked {
    etag: Option<String>,
    size: Option<u64>,
}

struct Answer {
    response: Response<Body>,
    linked: Linked,
    from: Origin,
}

impl<'a> Client<'a> {
    pub(super) fn new(name: &'a str, source: &'a HubSource) -> Result<Self, HubError> {
        let endpoint = source.endpoint.trim_end_matches('/');
        let wrong = || HubError::Endpoint { endpoint: source.endpoint.clone() };
        let uri = Uri::from_str(endpoint).map_err(|_| wrong())?;
        let home = Origin::of(&uri).ok_or_else(wrong)?;
        let malformed = |token: &&Token| !token.secret.chars().all(|c| c.is_ascii_graphic());
        if let Some(token) = source.token.as_ref().filter(malformed) {
            return Err(HubError::TokenMalformed { origin: token.origin.clone() });
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, with or without the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("lockstep/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT_WITHIN))
            .timeout_recv_response(Some(source.patience.silence))
            .timeout_per_read(Some(source.patience.silence));
        if home.host == "localhost" || home.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) {
            // No proxy leads to this very host.
            config = config.proxy(None);
        }
        let agent = config.build().into();
        Ok(Self { agent, endpoint, home, token: source.token.as_ref(), name, revision: &source.revision })
    }

    /// The files of the model.
    pub(super) fn list(&self) -> Result<Listing, HubError> {
        let what = format!("the list of files of {}", self.name);
        let path = format!("api/models/{}/revision/{}", self.name, encoded(self.revision, ""));
        let answer = self.follow(Method::Get, &path, 0, &what)?;
        let answer = self.expect_success(answer, &what)?;
        let host = answer.from.to_string();
        let unexpected =
            |found: String| HubError::Unexpected { what: what.clone(), host: host.clone(), found };
        let body = answer.response.into_body().into_with_config().limit(LIST_BYTES).read_to_vec();
        let body = body.map_err(|source: ureq::Error| HubError::Unreachable {
            host: host.clone(),
            source: source.into_io(),
        })?;
        let info: Info = serde_json::from_slice(&body).map_err(|error| {
            unexpected(format!("answers with something else than a list of files ({error})"))
        })?;
        if !is_file_name(&info.sha) {
            return Err(unexpected(format!("answers with {:?} for a commit", info.sha)));
        }
        let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Listing { commit: info.sha, files })
    }

    /// What a file is.
    pub(super) fn probe(&self, commit: &str, file: &str) -> Result<RemoteFile, HubError> {
        let what = self.called(file);
        let answer = self.follow(Method::Head, &self.path(commit, file), 0, &what)?;
        let known = answer.linked.etag.is_some() && answer.linked.size.is_some();
        let answer = if known { answer } else { self.expect_success(answer, &what)? };
        let host = answer.from.to_string();
        let missing = |found: &str| HubError::Unexpected {
            what: what.clone(),
            host: host.clone(),
            found: found.to_owned(),
        };
        let headers = answer.response.headers();
        let etag = answer.linked.etag.or_else(|| etag(headers, "etag"));
        let etag = etag.ok_or_else(|| missing("answers without an ETag"))?;
        if !is_file_name(&etag) {
            return Err(missing("answers with an ETag that can be no file's name"));
        }
        let size = answer.linked.size.or_else(|| number(headers, "content-length"));
        let size = size.ok_or_else(|| missing("answers without a Content-Length"))?;
        Ok(RemoteFile { file: file.to_owned(), etag, size })
    }

    /// The bytes of a file from `start` on, or from the beginning where the server knows no ranges.
    pub(super) fn open(&self, commit: &str, remote: &RemoteFile, start: u64) -> Result<Incoming, HubError> {
        let what = self.called(&remote.file);
        let answer = self.follow(Method::Get, &self.path(commit, &remote.file), start, &what)?;
        let answer = self.expect_success(answer, &what)?;
        if answer.linked.etag.as_ref().is_some_and(|etag| *etag != remote.etag) {
            return Err(HubError::Changed { file: remote.file.clone(), name: self.name.to_owned() });
        }
        let headers = answer.response.headers();
        let (start, whole) = if answer.response.status() == StatusCode::PARTIAL_CONTENT {
            let range = content_range(headers);
            let legible = range.filter(|(first, size)| *first <= start && *size == remote.size);
            let host = answer.from.to_string();
            let found = "answers with another part of the file than was asked for".to_owned();
            legible.ok_or(HubError::Unexpected { what, host, found })?
        } else {
            (0, number(headers, "content-length").unwrap_or(remote.size))
        };
        if whole != remote.size {
            let why = format!("{} announces {whole} bytes", answer.from);
            return Err(self.truncated(remote, 0, why));
        }
        Ok(Incoming { start, bytes: Box::new(answer.response.into_body().into_reader()) })
    }

    /// The connection ended with `received` bytes of the file here.
    pub(super) fn truncated(&self, remote: &RemoteFile, received: u64, why: String) -> HubError {
        let (file, name) = (remote.file.clone(), self.name.to_owned());
        HubError::Truncated { file, name, received, expected: remote.size, why }
    }

    fn path(&self, commit: &str, file: &str) -> String {
        format!("{}/resolve/{commit}/{}", self.name, encoded(file, "/"))
    }

    fn called(&self, file: &str) -> String {
        format!("{file} of {}", self.name)
    }

    fn follow(&self, method: Method, path: &str, start: u64, what: &str) -> Result<Answer, HubError> {
        let first = format!("{}/{path}", self.endpoint);
        let unexpected = |host: &Origin, found: String| {
            Err(HubError::Unexpected { what: what.to_owned(), host: host.to_string(), found })
        };
        let Ok(mut uri) = Uri::from_str(&first) else {
            return unexpected(&self.home, format!("has no address {first:?}"));
        };
        let mut linked = Linked::default();
        let mut from = self.home.clone();
        for _ in 0..REDIRECTS {
            let response = self.ask(method, &uri, &from, start)?;
            let elsewhere = redirect(&response, &uri);
            if from == self.home {
                linked.note(response.headers(), elsewhere.is_some());
            }
            let known = method == Method::Head && linked.etag.is_some() && linked.size.is_some();
            let (Some(next), false) = (elsewhere, known) else {
                return Ok(Answer { response, linked, from });
            };
            let origin = Origin::of(&next);
            match origin {
                Some(origin) if origin.https || !from.https => from = origin,
                Some(_) | None => {
                    return unexpected(&from, format!("sends us to {next}, which is not safe"));
                }
            }
            uri = next;
        }
        unexpected(&from, format!("sends us on more than {REDIRECTS} times"))
    }

    fn ask(&self, method: Method, uri: &Uri, to: &Origin, start: u64) -> Result<Response<Body>, HubError> {
        let mut request = match method {
            Method::Head => self.agent.head(uri),
            Method::Get => self.agent.get(uri),
        };
        if let Some(token) = self.token.filter(|_| *to == self.home) {
            request = request.header("authorization", format!("Bearer {}", token.secret));
        }
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        let unreachable =
            |source: ureq::Error| HubError::Unreachable { host: to.to_string(), source: source.into_io() };
        request.call().map_err(unreachable)
    }

    fn expect_success(&self, answer: Answer, what: &str) -> Result<Answer, HubError> {
        if answer.response.status().is_success() { Ok(answer) } else { Err(self.explain(answer, what)) }
    }

    fn explain(&self, answer: Answer, what: &str) -> HubError {
        let status = answer.response.status().as_u16();
        let (headers, host) = (answer.response.headers(), answer.from.to_string());
        let (name, endpoint) = (self.name.to_owned(), self.endpoint.to_owned());
        let message =
            header(headers, "x-error-message").map(|text| text.chars().take(MESSAGE_CHARS).collect());
        let message: String = message.unwrap_or_default();
        let token = if self.token.is_some() { TokenShown::Yes } else { TokenShown::No };
        let from_elsewhere = answer.from != self.home;
        match (status, header(headers, "x-error-code").as_deref()) {
            (_, Some("GatedRepo")) => HubError::Gated { name, endpoint, token },
            (_, Some("RevisionNotFound")) => {
                HubError::NoRevision { name, revision: self.revision.to_owned(), endpoint }
            }
            (_, Some("RepoNotFound")) | (404, None) if !from_elsewhere => {
                HubError::NoRepo { name, endpoint, token }
            }
            (401, None) if !from_elsewhere => match self.token {
                Some(token) => HubError::TokenRefused { endpoint, origin: token.origin.clone(), message },
                None => HubError::NoRepo { name, endpoint, token },
            },
            // Elsewhere an address is good for some minutes; the Hub gives a new one.
            _ if from_elsewhere || is_busy(status) => {
                let seconds = header(headers, "retry-after").and_then(|text| text.trim().parse().ok());
                let retry_after = seconds.map(Duration::from_secs);
                HubError::Busy { what: what.to_owned(), host, status, retry_after }
            }
            _ => {
                let said = if message.is_empty() { message } else { format!(": {message}") };
                HubError::Unexpected {
                    what: what.to_owned(),
                    host,
                    found: format!("answers {status}{said}"),
                }
            }
        }
    }
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Some(Self { https, host: uri.host()?.to_ascii_lowercase(), port })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let usual = if self.https { 443 } else { 80 };
        f.write_str(&self.host)?;
        if self.port == usual { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl Linked {
    /// Takes in what one answer of the Hub says. The plain headers of a redirect are about the redirect.
    fn note(&mut self, headers: &HeaderMap, is_redirect: bool) {
        let said =
            etag(headers, "x-linked-etag").or_else(|| etag(headers, "etag").filter(|_| !is_redirect));
        self.etag = said.or(self.etag.take());
        self.size = number(headers, "x-linked-size").or(self.size);
    }
}

/// Whether the same question is worth asking again.
fn is_busy(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

/// Where an answer sends us, if it does.
fn redirect(response: &Response<Body>, from: &Uri) -> Option<Uri> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = header(response.headers(), "location")?;
    let scheme = from.scheme_str()?;
    let authority = from.authority()?;
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.contains("://") {
        location
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    Uri::from_str(&absolute).ok()
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    header(headers, name).and_then(|text| text.trim().parse().ok())
}

fn etag(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = header(headers, name)?;
    Some(text.trim_start_matches("W/").trim_matches('"').to_owned())
}

/// First byte and size of the whole, from `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = header(headers, "content-range")?;
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0;
    Some((first.trim().parse().ok()?, size.trim().parse().ok()?))
}

/// As part of an address; `kept` are characters beside the usual ones that stay as they are.
fn encoded(text: &str, kept: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || kept.contains(c) {
            encoded.push(c);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_read_against_where_it_came_from() {
        let from: Uri = "https://hub.example/org/small/resolve/main/a".parse().expect("an address");
        let cases = [
            ("/b?x=1", "https://hub.example/b?x=1"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("http://cdn.example:81/b", "http://cdn.example:81/b"),
            ("b", "https://hub.example/org/small/resolve/main/b"),
        ];
        for (location, expected) in cases {
            let response = Response::builder().status(302).header("location", location);
            let response = response.body(Body::builder().data("")).expect("a response");
            assert_eq!(redirect(&response, &from).map(|uri| uri.to_string()).as_deref(), Some(expected));
        }
    }

    #[test]
    fn another_port_is_another_host() {
        let origin = |text: &str| Origin::of(&text.parse().expect("an address"));
        assert_eq!(origin("https://Hub.example/a"), origin("https://hub.example:443"));
        for other in ["http://hub.example", "https://hub.example:444", "https://hub.example.com"] {
            assert_ne!(origin("https://hub.example"), origin(other), "{other}");
        }
        assert_eq!(origin("ftp://hub.example"), None);
    }

    #[test]
    fn revisions_and_files_become_addresses() {
        assert_eq!(encoded("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b/ü.jinja", "/"), "a%20b/%C3%BC.jinja");
    }
}
