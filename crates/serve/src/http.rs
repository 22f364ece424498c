//! Connections: how many, how slow they may be, and how they end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

use crate::auth::{BearerToken, check_exposure};
use crate::error::ServeError;
use crate::limits::ServerLimits;

/// Threads that speak HTTP; the engine's work is elsewhere.
const NUM_THREADS: usize = 2;

/// Blocking threads beside those that wait for the engine: parsing, files.
const SPARE_THREADS: usize = 16;

/// A pause after a connection could not be accepted, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running server. It stops when told, or when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `router` at `address` (port 0: any free one) on threads of its own. `token` is the
    /// one that `router` asks for; without one, only loopback addresses are served.
    ///
    /// # Errors
    /// [`ServeError::Token`] for an open address without a token, [`ServeError::Bind`],
    /// [`ServeError::Io`] when threads cannot be started.
    pub fn start(
        address: SocketAddr,
        token: Option<&BearerToken>,
        limits: ServerLimits,
        router: Router,
    ) -> Result<Self, ServeError> {
        check_exposure(address, token)?;
        let bind = |source| ServeError::Bind { address: address.to_string(), source };
        let listener = std::net::TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NUM_THREADS)
            .max_blocking_threads(limits.max_samples + SPARE_THREADS)
            .thread_name("http")
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("server".to_owned()).spawn(move || {
            runtime.block_on(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => {
                        let _ = ready.send(Ok(()));
                        accept(listener, limits, router, stopped).await;
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            });
            // Whoever still waits for an engine does so without us.
            runtime.shutdown_timeout(Duration::from_secs(1));
        })?;
        let ended = || std::io::Error::other("the server's thread ended at its start");
        is_ready.recv().map_err(|_| ended())??;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it still serves. It ends by itself only if its thread failed.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Takes no more connections, lets requests in work finish for as long as the limits say, and
    /// ends.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; there is nothing more to end.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Accepts connections until told to stop; then drains them.
async fn accept(
    listener: TcpListener,
    limits: ServerLimits,
    router: Router,
    mut stopped: oneshot::Receiver<()>,
) {
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(limits.max_connections.max(1)));
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        let (accepted, permit) = tokio::select! {
            _ = &mut stopped => break,
            next = next => match next {
                Some(next) => next,
                None => break,
            },
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Small answers should not wait to be joined with others.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .serve_connection(TokioIo::new(stream), service);
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            // A connection that breaks is its client's matter.
            let _ = watched.await;
            drop(permit);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(limits.drain, graceful.shutdown()).await;
}
