//! A model's files over plain HTTP, from where an engine's host serves its model's directory.
//!
//! What comes is bounded in bytes and time, and comes from the host that was named: a redirect is an error. No engine gives its
//! vocabulary away itself; vLLM has at least the rest (`/tokenizer_info`), which is asked for where the directory has only
//! `tokenizer.json`.

use super::TokenError;
use super::files::{NAMES, Raw};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::StatusCode;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use quorate_routing::Target;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::net::TcpStream;

/// Stands in a URL for the host of one of the pool's endpoints.
const HOST: &str = "{host}";
/// For all files together.
const WITHIN: Duration = Duration::from_secs(60);
/// The largest `tokenizer.json`: five times the largest that are known.
const MAX_VOCABULARY: usize = 128 << 20;
/// The largest of the others.
const MAX_OTHER: usize = 8 << 20;

/// Where a model's files are served: `http://host:port/path`, where the host may be `{host}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileServer {
    /// Without the scheme and the path.
    authority: String,
    /// Begins with a slash, does not end with one; or empty.
    path: String,
}

impl FileServer {
    /// Reads such a URL.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(url: &str) -> Result<Self, String> {
        let rest = url
            .strip_prefix("http://")
            .ok_or("must begin with http://")?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let parsed = Self {
            authority: authority.to_owned(),
            path: path.trim_end_matches('/').to_owned(),
        };
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '{' | '}' | '\\');
        if !parsed.path.chars().all(plain) {
            return Err("has a path that is not plain".to_owned());
        }
        let inside = authority.replacen(HOST, "host", 1);
        if authority.contains('{') && !authority.starts_with(HOST) || inside.contains('{') {
            return Err(format!("may have {HOST} only in the place of the host"));
        }
        Target::parse(&format!("http://{inside}")).map_err(|error| error.to_string())?;
        Ok(parsed)
    }

    /// The host is that of an endpoint.
    pub fn is_of_endpoints(&self) -> bool {
        self.authority.starts_with(HOST)
    }

    /// As it was written.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.authority, self.path)
    }

    fn target(&self, host: Option<&str>) -> Result<Target, TokenError> {
        let authority = match (self.is_of_endpoints(), host) {
            (false, _) => self.authority.clone(),
            (true, Some(host)) if host.contains(':') => {
                self.authority.replacen(HOST, &format!("[{host}]"), 1)
            }
            (true, Some(host)) => self.authority.replacen(HOST, host, 1),
            (true, None) => {
                return Err(TokenError::Unsupported(
                    "no endpoint whose host could be asked",
                ));
            }
        };
        Target::parse(&format!("http://{authority}")).map_err(|error| TokenError::File {
            path: self.url(),
            problem: error.to_string(),
        })
    }

    /// The files at `host`. `engine` is asked for what stands beside a vocabulary that is there alone.
    ///
    /// # Errors
    /// [`TokenError::File`] says which file could not be had and why; no vocabulary is one of these.
    pub(super) async fn fetch(
        &self,
        host: Option<&str>,
        engine: Option<&Target>,
    ) -> Result<Raw, TokenError> {
        let target = self.target(host)?;
        let place = format!("http://{}{}", target.authority, self.path);
        let bad = |name: &str, problem: &dyn std::fmt::Display| TokenError::File {
            path: format!("{place}/{name}"),
            problem: problem.to_string(),
        };
        let all = async {
            let mut files = BTreeMap::new();
            for name in NAMES {
                let most = match name {
                    "tokenizer.json" => MAX_VOCABULARY,
                    _ => MAX_OTHER,
                };
                let path = format!("{}/{name}", self.path);
                let got = get(&target, &path, most).await;
                match got.map_err(|problem| bad(name, &problem))? {
                    Some(bytes) => files.insert(name, bytes.to_vec()),
                    None if name == "tokenizer.json" => return Err(bad(name, &"is not there")),
                    None => None,
                };
            }
            let alone = !files.contains_key("tokenizer_config.json");
            if let Some(engine) = engine.filter(|engine| alone && !engine.tls) {
                // Not there unless the engine was started with --enable-tokenizer-info-endpoint.
                if let Ok(Some(info)) = get(engine, "/tokenizer_info", MAX_OTHER).await {
                    files.insert("tokenizer_config.json", info.to_vec());
                }
            }
            Ok(files)
        };
        let files = tokio::time::timeout(WITHIN, all).await;
        let files = files.map_err(|_| bad("", &format!("took longer than {WITHIN:?}")))??;
        Ok(Raw::new(place, files))
    }
}

/// A file; `None` where there is none.
async fn get(target: &Target, path: &str, most: usize) -> Result<Option<Bytes>, String> {
    let failed = |e: &dyn std::fmt::Display| e.to_string();
    let stream = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(|e| failed(&e))?;
    let (mut sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    let driving = tokio::spawn(connection);
    let request = hyper::Request::get(path)
        .header("host", &target.authority)
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let work = async {
        let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
        match answer.status() {
            StatusCode::OK => {
                let body = Limited::new(answer.into_body(), most).collect().await;
                Ok(Some(body.map_err(|e| failed(&e))?.to_bytes()))
            }
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_redirection() => {
                Err(format!("status {status}: redirects are not followed"))
            }
            status => Err(format!("status {status}")),
        }
    };
    let done = work.await;
    driving.abort();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, of_endpoints) in [
            ("http://10.0.0.1:8089/models/m", false),
            ("http://{host}:8089", true),
            ("http://{host}", true),
            ("http://[::1]:80/a/", false),
        ] {
            let server = FileServer::parse(url).unwrap();
            assert_eq!(server.is_of_endpoints(), of_endpoints, "{url}");
            assert_eq!(server.url(), url.trim_end_matches('/'));
        }
        let server = FileServer::parse("http://{host}:8089/m").unwrap();
        let at = |host| server.target(Some(host)).unwrap().authority;
        assert_eq!(at("node1"), "node1:8089");
        assert_eq!(at("fd00::1"), "[fd00::1]:8089");
        assert!(server.target(None).is_err());
        for bad in [
            "",
            "https://a/b",
            "http://",
            "http://a b/",
            "http://a/b?c",
            "http://a/{host}",
            "http://x.{host}/",
            "http://{host}{host}/",
            "http://{hosts}/",
            "http://u@a/",
            "http://a:0/",
        ] {
            assert!(FileServer::parse(bad).is_err(), "{bad}");
        }
    }
}
