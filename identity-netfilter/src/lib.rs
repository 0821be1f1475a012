//! identity-netfilter
