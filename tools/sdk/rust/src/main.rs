//! Asks Microsoft's own Rust client for tokens, as an application in a pod would.
//!
//! Prints `{"version"}` when it has started, then one answer a line for every question a line (`../python/client.py` tells
//! the form). Each question is asked with a new credential; the process stays the same.

use std::{io::BufRead, time::Instant};

use azure_core::credentials::TokenCredential;
use azure_identity::{ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Question {
    resource: String,
    kind: Option<String>,
    client_id: Option<String>,
    resource_id: Option<String>,
    object_id: Option<String>,
}

async fn ask(line: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let question: Question = serde_json::from_str(line)?;
    if question.kind.as_deref() == Some("default") {
        return Ok(json!({"unsupported": "azure_identity for Rust has no DefaultAzureCredential"}));
    }
    let id = match (question.client_id, question.resource_id, question.object_id) {
        (Some(id), _, _) => Some(UserAssignedId::ClientId(id)),
        (_, Some(id), _) => Some(UserAssignedId::ResourceId(id)),
        (_, _, Some(id)) => Some(UserAssignedId::ObjectId(id)),
        _ => None,
    };
    let options = ManagedIdentityCredentialOptions { user_assigned_id: id, ..Default::default() };
    let credential = ManagedIdentityCredential::new(Some(options))?;
    let token = credential.get_token(&[&format!("{}/.default", question.resource)], None).await?;
    Ok(json!({"token": token.token.secret(), "expires_on": token.expires_on.unix_timestamp()}))
}

/// The version that the lock file pins.
fn version() -> &'static str {
    include_str!("../Cargo.lock")
        .split_once("name = \"azure_identity\"\nversion = \"")
        .and_then(|(_, rest)| rest.split('"').next())
        .unwrap_or("unknown")
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("{}", json!({"version": version()}));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let begin = Instant::now();
        let mut answer = ask(&line).await.unwrap_or_else(|error| json!({"error": error.to_string()}));
        answer["ms"] = json!(begin.elapsed().as_millis());
        println!("{answer}");
    }
}
