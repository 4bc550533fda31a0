//! Telling a policy that is a bound what the trace will bring.
//!
//! Only where the order of arrival is known before the run: in an open loop. Cost: all blocks of all
//! prompts at once, unlike everything else here, which streams.

use policies::Policy;
use traces::{Request, When};

use crate::replay::content_of;

/// Why a policy cannot be told the future.
#[derive(Debug, thiserror::Error)]
pub enum ForeseeError<E: std::error::Error> {
    /// The trace could not be read on.
    #[error(transparent)]
    Trace(E),
    /// Requests wait for answers, so nobody knows who comes first.
    #[error(
        "request {id} is sent after an answer (closed loop), so the order of requests is not known before \
         they are served, and a policy that needs to know it (belady) cannot be told"
    )]
    ClosedLoop {
        /// The first such request.
        id: u64,
    },
}

/// Tells the requests of a trace to a policy that [wants](Policy::wants_future) to know them; to others
/// nothing, and then the trace is not read.
///
/// # Errors
/// [`ForeseeError`] when the trace cannot be read or does not fix the order of its requests.
pub fn foresee<E: std::error::Error>(
    policy: &mut dyn Policy,
    trace: impl Iterator<Item = Result<Request, E>>,
) -> Result<(), ForeseeError<E>> {
    if !policy.wants_future() {
        return Ok(());
    }
    let mut prompts = Vec::new();
    for request in trace {
        let request = request.map_err(ForeseeError::Trace)?;
        if let When::After { .. } = request.when {
            return Err(ForeseeError::ClosedLoop { id: request.id });
        }
        prompts.push((content_of(&request), request.prompt_tokens));
    }
    policy.foresee(&mut prompts.into_iter());
    Ok(())
}
