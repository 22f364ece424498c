//! Servers over an engine: the Tinker API, OpenAI-compatible endpoints, and the gateway that
//! records what a foreign agent asks.
