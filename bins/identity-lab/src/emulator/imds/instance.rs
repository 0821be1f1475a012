//! `GET /metadata/instance`: a document that the path walks
//! (<https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service>).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde_json::{Value, json};

use super::error::generic;
use crate::emulator::{
    config::VirtualMachine,
    http::{Call, Reply},
};

const VM_ID: &str = "02aab8a4-74ef-476e-8182-f6d2ba4166a6";

/// The document, or the part of it that `path` leads to.
pub(super) fn answer(vm: &VirtualMachine, path: &[&str], call: &Call) -> Result<Reply, Reply> {
    let document = document(vm);
    let mut node = &document;
    for segment in path.iter().filter(|segment| !segment.is_empty()) {
        let next = match node {
            Value::Object(fields) => fields.get(*segment),
            Value::Array(items) => segment.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => None,
        };
        node = next.ok_or_else(|| generic(StatusCode::NOT_FOUND, "Not found"))?;
    }
    match (call.query.get("format").unwrap_or("json"), node) {
        ("json", Value::Object(_) | Value::Array(_)) => Ok(Reply::json(StatusCode::OK, node)),
        ("text", Value::Object(fields)) => Ok(listing(fields.iter().map(|(name, value)| (name.clone(), value)))),
        ("text", Value::Array(items)) => {
            Ok(listing(items.iter().enumerate().map(|(index, value)| (index.to_string(), value))))
        }
        ("text", leaf) => Ok(Reply::text(StatusCode::OK, leaf.as_str().unwrap_or_default())),
        ("json", _) => {
            Err(generic(StatusCode::BAD_REQUEST, "Bad request. The requested element is a leaf: specify format=text"))
        }
        _ => Err(generic(StatusCode::BAD_REQUEST, "Bad request. Unsupported value of 'format'")),
    }
}

/// `GET /metadata/attested/document`. The document is in the clear: nothing here could sign as Azure does.
pub(super) fn attested(vm: &VirtualMachine, call: &Call) -> Result<Reply, Reply> {
    let nonce = call.query.get("nonce").unwrap_or_default();
    if nonce.len() > 32 {
        return Err(generic(StatusCode::BAD_REQUEST, "Bad request. 'nonce' has more than 32 characters"));
    }
    let document = json!({
        "licenseType": "", "nonce": nonce, "plan": {"name": "", "product": "", "publisher": ""}, "sku": "server",
        "subscriptionId": vm.subscription_id, "vmId": VM_ID,
    });
    let body = json!({"encoding": "pkcs7", "signature": STANDARD.encode(document.to_string())});
    Ok(Reply::json(StatusCode::OK, &body))
}

/// `GET /metadata/loadbalancer`.
pub(super) fn load_balancer() -> Value {
    json!({
        "loadbalancer": {
            "publicIpAddresses": [{"frontendIpAddress": "51.0.0.1", "privateIpAddress": "10.240.0.4"}],
            "inboundRules": [],
            "outboundRules": [],
        },
    })
}

/// One name a line; those that lead further end with a slash.
fn listing<'a>(entries: impl Iterator<Item = (String, &'a Value)>) -> Reply {
    let lines: Vec<String> = entries
        .map(|(name, value)| if value.is_object() || value.is_array() { format!("{name}/") } else { name })
        .collect();
    Reply::text(StatusCode::OK, &lines.join("\n"))
}

/// All leaves are strings, as in the real one.
fn document(vm: &VirtualMachine) -> Value {
    json!({
        "compute": {
            "azEnvironment": "AzurePublicCloud",
            "location": vm.location,
            "name": vm.name,
            "osType": "Linux",
            "provider": "Microsoft.Compute",
            "resourceGroupName": vm.resource_group,
            "resourceId": vm.resource_id(),
            "securityProfile": {"secureBootEnabled": "false", "virtualTpmEnabled": "false"},
            "sku": "server",
            "subscriptionId": vm.subscription_id,
            "tags": "",
            "tagsList": [],
            "vmId": VM_ID,
            "vmScaleSetName": "",
            "vmSize": "Standard_D2s_v5",
            "zone": "",
        },
        "network": {
            "interface": [{
                "ipv4": {
                    "ipAddress": [{"privateIpAddress": "10.240.0.4", "publicIpAddress": ""}],
                    "subnet": [{"address": "10.240.0.0", "prefix": "16"}],
                },
                "ipv6": {"ipAddress": []},
                "macAddress": "0022487BAD0E",
            }],
        },
    })
}
