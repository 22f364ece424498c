//! A plain HTTP client: what goes over the wire is what the test says.

#![expect(dead_code, reason = "not every test uses all of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Sends a request and leaves the answer unread.
pub fn send(address: SocketAddr, path: &str, token: &str, body: &Value) -> TcpStream {
    write(address, "POST", path, token, &body.to_string())
}

fn write(address: SocketAddr, method: &str, path: &str, token: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// The status and the body as text.
pub fn call(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = write(address, method, path, token, body);
    let mut bytes = Vec::new();
    // A server that refuses a body may end the connection before it has read it.
    let _ = stream.read_to_end(&mut bytes);
    let answer = String::from_utf8(bytes).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Posts JSON; the status and the answer.
pub fn post(address: SocketAddr, path: &str, token: &str, body: &Value) -> (u16, Value) {
    let (status, text) = call(address, "POST", path, token, &body.to_string());
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// The events of a streamed answer, up to `[DONE]`.
pub fn events(address: SocketAddr, path: &str, token: &str, body: &Value) -> Vec<Value> {
    let (status, text) = call(address, "POST", path, token, &body.to_string());
    assert_eq!(status, 200, "{text}");
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(*data.last().unwrap(), "[DONE]");
    data[..data.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// Posts bytes; the status, the head and the body.
pub fn raw(
    address: SocketAddr,
    path: &str,
    token: &str,
    content_type: &str,
    body: &[u8],
) -> (u16, String, Vec<u8>) {
    raw_with(address, path, token, content_type, "", body)
}

/// [`raw`] with more header lines.
pub fn raw_with(
    address: SocketAddr,
    path: &str,
    token: &str,
    content_type: &str,
    headers: &str,
    body: &[u8],
) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nX-API-Key: {token}\r\n\
         Content-Type: {content_type}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, bytes[end + 4..].to_vec())
}
