//! The page at `/playground`: its files, their headers, and that it needs no other host.

mod support;

use axum::body::Body;
use axum::http::Request;
use support::Server;

/// Every file of the page with the start of its media type.
const FILES: [(&str, &str); 6] = [
    ("/playground", "text/html"),
    ("/playground/style.css", "text/css"),
    ("/playground/app.js", "text/javascript"),
    ("/playground/client.js", "text/javascript"),
    ("/playground/parameters.js", "text/javascript"),
    ("/playground/tokens.js", "text/javascript"),
];

#[tokio::test]
async fn every_file_is_served_with_its_headers_and_asked_after_by_its_name() {
    let server = Server::saying("hi").await;
    for (path, media_type) in FILES {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.header("content-type").starts_with(media_type), "{path}");
        assert!(reply.header("content-type").ends_with("charset=utf-8"), "{path}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(reply.header("cache-control"), "no-cache", "{path}");
        let etag = reply.header("etag").to_owned();
        for (known, status) in [(etag.as_str(), 304), ("\"other\"", 200), ("\"other\", *", 304)] {
            let request = Request::get(path).header("if-none-match", known).body(Body::empty()).unwrap();
            let again = server.send(request).await;
            assert_eq!((again.status, again.header("etag")), (status, etag.as_str()), "{path} {known}");
            assert_eq!(again.text.is_empty(), status == 304, "{path} {known}");
        }
    }
}

#[tokio::test]
async fn the_policy_allows_the_own_server_only() {
    let server = Server::saying("hi").await;
    let reply = server.get("/playground").await;
    let policy = reply.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    for directive in policy.split(';') {
        let mut sources = directive.split_whitespace().skip(1);
        assert!(sources.all(|source| ["'none'", "'self'", "data:"].contains(&source)), "{directive}");
    }
}

#[tokio::test]
async fn nothing_refers_to_another_host_or_runs_inline() {
    let server = Server::saying("hi").await;
    for (path, _) in FILES {
        let text = server.get(path).await.text;
        for foreign in ["http:", "https:", "\"//", "'//", "(//", "@import", " url(", "eval(", "innerHTML"] {
            assert!(!text.contains(foreign), "{path} contains {foreign}");
        }
    }
    let page = server.get("/playground").await.text;
    for inline in ["<style", "style=\"", " onclick", " onload", "<script>"] {
        assert!(!page.contains(inline), "the policy forbids {inline}");
    }
}

#[tokio::test]
async fn every_file_the_page_names_is_served() {
    let server = Server::saying("hi").await;
    let mut named = Vec::new();
    for (path, _) in FILES {
        let text = server.get(path).await.text;
        let attributes = text
            .split(['"', '\''])
            .filter(|word| word.starts_with("./") || word.starts_with("playground/"));
        named.extend(attributes.map(|word| match word.strip_prefix("./") {
            Some(module) => format!("/playground/{module}"),
            None => format!("/{word}"),
        }));
    }
    assert!(named.len() >= 4, "{named:?}");
    for path in named {
        assert_eq!(server.get(&path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_slash_at_the_end_leads_to_the_page_and_the_root_stays_a_probe() {
    let server = Server::saying("hi").await;
    let reply = server.get("/playground/").await;
    assert_eq!((reply.status, reply.header("location")), (308, "../playground"));
    let root = server.get("/").await;
    assert_eq!((root.status, root.text.as_str()), (200, ""));
}
