//! The clients, each unmodified and pinned in `tools/sdk`.

use std::ffi::OsString;

use crate::setup::sdk::Kit;

/// A client library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Client {
    PythonIdentity,
    PythonIdentityAio,
    PythonMsal,
    NodeIdentity,
    NodeMsal,
    GoIdentity,
    GoAdal,
    JavaIdentity,
    JavaMsal,
    RustIdentity,
    Curl,
}

impl Client {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 11] = [
        Self::PythonIdentity,
        Self::PythonIdentityAio,
        Self::PythonMsal,
        Self::NodeIdentity,
        Self::NodeMsal,
        Self::GoIdentity,
        Self::GoAdal,
        Self::JavaIdentity,
        Self::JavaMsal,
        Self::RustIdentity,
        Self::Curl,
    ];

    /// As people know it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::PythonIdentity => "Python azure-identity",
            Self::PythonIdentityAio => "Python azure-identity (aio)",
            Self::PythonMsal => "Python msal",
            Self::NodeIdentity => "JS @azure/identity",
            Self::NodeMsal => "JS @azure/msal-node",
            Self::GoIdentity => "Go azidentity",
            Self::GoAdal => "Go autorest/adal",
            Self::JavaIdentity => "Java azure-identity",
            Self::JavaMsal => "Java msal4j",
            Self::RustIdentity => "Rust azure_identity",
            Self::Curl => "curl",
        }
    }

    /// The name of its pod.
    pub const fn pod(self) -> &'static str {
        match self {
            Self::PythonIdentity => "python-identity",
            Self::PythonIdentityAio => "python-identity-aio",
            Self::PythonMsal => "python-msal",
            Self::NodeIdentity => "node-identity",
            Self::NodeMsal => "node-msal",
            Self::GoIdentity => "go-identity",
            Self::GoAdal => "go-adal",
            Self::JavaIdentity => "java-identity",
            Self::JavaMsal => "java-msal",
            Self::RustIdentity => "rust-identity",
            Self::Curl => "curl",
        }
    }

    /// The program that puts questions to it, with its arguments.
    pub fn command(self, kit: &Kit) -> Vec<OsString> {
        let python = |client: &str| {
            vec![kit.interpreted.python.clone().into(), kit.interpreted.python_client.clone().into(), client.into()]
        };
        let node = |client: &str| {
            vec![kit.interpreted.node.clone().into(), kit.interpreted.node_client.clone().into(), client.into()]
        };
        let go = |client: &str| vec![kit.go_client.clone().into(), client.into()];
        let java = |client: &str| {
            // A small machine's worth of threads and memory: two of them run beside nine other clients.
            let mut words: Vec<OsString> = vec![kit.java.clone().into()];
            words.extend(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"].map(OsString::from));
            words.extend([OsString::from(&kit.java_classes), "Client".into(), client.into()]);
            words
        };
        match self {
            Self::PythonIdentity => python("azure-identity"),
            Self::PythonIdentityAio => python("azure-identity-aio"),
            Self::PythonMsal => python("msal"),
            Self::NodeIdentity => node("azure-identity"),
            Self::NodeMsal => node("msal-node"),
            Self::GoIdentity => go("azidentity"),
            Self::GoAdal => go("adal"),
            Self::JavaIdentity => java("azure-identity"),
            Self::JavaMsal => java("msal4j"),
            Self::RustIdentity => vec![kit.rust_client.clone().into()],
            Self::Curl => vec![kit.interpreted.python.clone().into(), kit.curl_client.clone().into()],
        }
    }
}
