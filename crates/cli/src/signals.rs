//! SIGINT and SIGTERM: the first stops cleanly, the second at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use patchwright_train::events::CancelToken;

use crate::error::CliError;

/// Set by the first signal. One for the process, as signals are.
static CANCEL: CancelToken = CancelToken::new();

/// Signals so far.
static NUM_SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// Lets SIGINT, SIGTERM and SIGHUP set the token that it gives; `first` tells people about it. The
/// second signal ends the process with code 130; sandboxes end with it.
///
/// # Errors
/// When the handler cannot be set.
pub fn cancel_token(first: impl Fn() + Send + 'static) -> Result<&'static CancelToken, CliError> {
    ctrlc::set_handler(move || {
        if NUM_SIGNALS.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(130);
        }
        CANCEL.cancel();
        first();
    })
    .map_err(|error| CliError::failed(format!("signal handler: {error}")))?;
    Ok(&CANCEL)
}
