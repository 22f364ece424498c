//! A line to a server that can be made to break, slow down, lie or forget what ranges are.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What the line does.
#[derive(Default)]
pub struct Faults {
    /// Connections that are still to be cut.
    pub cuts: AtomicUsize,
    /// After so many bytes.
    pub cut_after: AtomicU64,
    /// Requests lose their `Range`.
    pub no_ranges: AtomicBool,
    /// One byte is changed in each connection, at this position; 0 for none.
    pub flip_at: AtomicU64,
    /// A pause for each piece that goes to the client, in milliseconds.
    pub pause: AtomicU64,
    /// Bytes that went to clients.
    pub sent: AtomicU64,
    /// Requests with a `Range`.
    pub ranges: AtomicUsize,
    /// Requests.
    pub requests: AtomicUsize,
    /// Requests that are still to be answered with 503.
    pub refusals: AtomicUsize,
}

/// A line to a port of this machine. Its threads end with the test's process.
pub struct Wire {
    pub port: u16,
    pub faults: Arc<Faults>,
}

impl Wire {
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let faults = Arc::new(Faults::default());
        let shared = Arc::clone(&faults);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let faults = Arc::clone(&shared);
                thread::spawn(move || {
                    let _ = connection(client, port, &faults);
                });
            }
        });
        Self { port: own, faults }
    }

    pub fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    pub fn sent(&self) -> u64 {
        self.faults.sent.load(Ordering::SeqCst)
    }

    /// Cuts the next connections after so many bytes each.
    pub fn cut(&self, times: usize, after: u64) {
        self.faults.cut_after.store(after, Ordering::SeqCst);
        self.faults.cuts.store(times, Ordering::SeqCst);
    }
}

fn take_one(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn connection(mut client: TcpStream, port: u16, faults: &Arc<Faults>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    let (answers, back) = (server.try_clone()?, client.try_clone()?);
    let shared = Arc::clone(faults);
    let down = thread::spawn(move || {
        let _ = downstream(answers, back, &shared);
    });
    // Requests have no body here: each read is of whole headers, one request or a part of one.
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = client.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        faults.requests.fetch_add(text.matches("HTTP/1.1\r\n").count(), Ordering::SeqCst);
        if take_one(&faults.refusals) {
            client.write_all(
                b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 0\r\nConnection: close\r\n\r\n",
            )?;
            client.shutdown(Shutdown::Both)?;
            server.shutdown(Shutdown::Both)?;
            break;
        }
        let has_range = text.to_ascii_lowercase().contains("\r\nrange:");
        faults.ranges.fetch_add(usize::from(has_range), Ordering::SeqCst);
        if has_range && faults.no_ranges.load(Ordering::SeqCst) {
            let lines = text.split_inclusive("\r\n");
            let kept: String =
                lines.filter(|line| !line.to_ascii_lowercase().starts_with("range:")).collect();
            server.write_all(kept.as_bytes())?;
        } else {
            server.write_all(&buffer[..n])?;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = down.join();
    Ok(())
}

fn downstream(
    mut server: TcpStream,
    mut client: TcpStream,
    faults: &Faults,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut sent: u64 = 0;
    loop {
        let n = server.read(&mut buffer)?;
        if n == 0 {
            return client.shutdown(Shutdown::Both);
        }
        let flip = faults.flip_at.load(Ordering::SeqCst);
        if flip > 0 && (sent..sent + n as u64).contains(&flip) {
            buffer[(flip - sent) as usize] ^= 0x55;
        }
        let after = faults.cut_after.load(Ordering::SeqCst);
        if after > 0 && sent + n as u64 > after && take_one(&faults.cuts) {
            let n = (after - sent.min(after)) as usize;
            client.write_all(&buffer[..n])?;
            faults.sent.fetch_add(n as u64, Ordering::SeqCst);
            server.shutdown(Shutdown::Both)?;
            return client.shutdown(Shutdown::Both);
        }
        client.write_all(&buffer[..n])?;
        sent += n as u64;
        faults.sent.fetch_add(n as u64, Ordering::SeqCst);
        let pause = faults.pause.load(Ordering::SeqCst);
        if pause > 0 {
            thread::sleep(Duration::from_millis(pause));
        }
    }
}
