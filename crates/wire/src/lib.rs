//! The messages of the Tinker API, as JSON and as protobuf: what its clients and servers share.
