//! etcd: one member, nothing synced to disk.

use std::{path::Path, time::Duration};

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::Error;
use crate::process::{Keeper, Process};

const ANSWER: Duration = Duration::from_secs(10);

pub(super) fn start(keeper: &Keeper, assets: &Path, work: &Path, port: u16, peer: u16) -> Result<Process, Error> {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
    let arguments = [
        "--name=lab".to_owned(),
        format!("--data-dir={}", work.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=lab={peer}"),
        "--socket-reuse-port=true".to_owned(),
        "--unsafe-no-fsync=true".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    Ok(keeper.spawn("etcd", &assets.join("etcd"), &arguments, &[], &work.join("etcd.log"))?)
}

/// Compacts everything up to the current revision, through etcd's JSON gateway.
pub(super) async fn compact(port: u16) -> Result<(), Error> {
    let key = base64::engine::general_purpose::STANDARD.encode("none");
    let answer = post(port, "/v3/kv/range", &json!({ "key": key })).await?;
    let revision = answer.pointer("/header/revision").cloned().unwrap_or_default();
    post(port, "/v3/kv/compaction", &json!({ "revision": revision, "physical": true })).await.map(drop)
}

async fn post(port: u16, path: &str, body: &Value) -> Result<Value, Error> {
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer =
        tokio::time::timeout(ANSWER, exchange).await.map_err(|_| Error::Etcd(format!("no answer to {path}")))??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if !head.contains(" 200 ") {
        return Err(Error::Etcd(format!("{path}: {answer}")));
    }
    serde_json::from_str(body).map_err(|error| Error::Etcd(format!("{path}: {error}: {body}")))
}
