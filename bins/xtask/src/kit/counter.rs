//! Counts the HTTP requests that leave a pod, where they leave it: packets to the metadata endpoint whose payload begins with
//! `GET `, in the pod's own network namespace. The product's rules are in the node's and know nothing of this one.

use anyhow::Context;

use crate::lab::Lab;

/// `GET ` as a number.
const GET: u32 = u32::from_be_bytes(*b"GET ");

/// Begins to count in a pod.
///
/// # Errors
/// What nft says.
pub(super) fn begin(lab: &Lab, pod: &str) -> anyhow::Result<()> {
    let rules = format!(
        "add table ip kit; add counter ip kit requests; \
         add chain ip kit output {{ type filter hook output priority 0 ; policy accept ; }}; \
         add rule ip kit output ip daddr 169.254.169.254 tcp dport 80 @ih,0,32 {GET:#x} counter name requests"
    );
    lab.inside(pod, &["nft", &rules]).run_quietly()
}

/// Requests so far.
///
/// # Errors
/// When the counter cannot be read.
pub(super) fn read(lab: &Lab, pod: &str) -> anyhow::Result<u64> {
    let text = lab.inside(pod, &["nft", "-j", "list", "counter", "ip", "kit", "requests"]).text()?;
    packets(&text).with_context(|| format!("no counter in {text}"))
}

fn packets(text: &str) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    value["nftables"].as_array()?.iter().find_map(|item| item["counter"]["packets"].as_u64())
}

#[cfg(test)]
mod tests {
    use super::packets;

    #[test]
    fn reads_what_nft_prints() {
        let text = r#"{"nftables": [{"metainfo": {"json_schema_version": 1}}, {"counter": {"family": "ip", "name": "requests", "table": "kit", "handle": 2, "packets": 3, "bytes": 394}}]}"#;
        assert_eq!(packets(text), Some(3));
        assert_eq!(packets(r#"{"nftables": []}"#), None);
        assert_eq!(packets("nonsense"), None);
    }
}
