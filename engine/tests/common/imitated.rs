//! The imitated device, opened.
#![allow(unsafe_code)]

use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use engine::cuda::{self, Gpu};

use super::imitation;

/// As late as they may: who does not wait for the work of streams sees what was there before.
pub const LATE: u32 = 1;

/// The right to use the device.
pub type Turn = MutexGuard<'static, ()>;

/// Says when streams do their work: 0 at once, 1 when somebody waits for it and no sooner, n by chance.
type Pace = unsafe extern "C" fn(u32);

/// The device, for one test at a time, with its kernels watched or not; none where there is no C++ compiler. A process has
/// the one that it asked for first.
pub fn gpu(is_watched: bool, pace: u32) -> Option<(Gpu, Turn)> {
    static GPU: OnceLock<Option<(Gpu, Pace)>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = || {
        let folder = imitation::build(Path::new(env!("CARGO_MANIFEST_DIR")), is_watched)?;
        // Loaded under the names by which the backend looks for them, they are found instead of real ones.
        // SAFETY: the libraries' initialisers only set up their own variables.
        let load = |name: &str| unsafe { libloading::Library::new(folder.join(name)) }.expect("it loads");
        let driver = Box::leak(Box::new(load("libcuda.so")));
        std::mem::forget(load("libcublasLt.so"));
        // SAFETY: the function has this type.
        let pace = unsafe { driver.get::<Pace>("imitated_pace") }.expect("it is there");
        Some((cuda::open(0).expect("the imitation opens"), *pace))
    };
    let (gpu, set_pace) = GPU.get_or_init(open).clone()?;
    // SAFETY: nobody else uses the device during this turn.
    unsafe { set_pace(pace) };
    Some((gpu, turn))
}
