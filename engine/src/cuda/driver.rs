//! What is used of the CUDA driver: memory, streams, events, modules and graphs that free
//! themselves, and launches with packed arguments.
//!
//! Every handle keeps its device alive, and every call makes the device's context current first,
//! so handles may move between threads. Two threads never use one at a time: the backend owns all.

#![allow(unsafe_code)]

use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::error::EngineError;

/// What is known of a device.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Compute capability, `10 * major + minor`.
    pub arch: u32,
    /// Multiprocessors.
    pub processors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of L2 cache.
    pub l2: u32,
}

/// A device whose primary context is held.
pub(crate) struct Device {
    context: sys::CUcontext,
    device: sys::CUdevice,
    pub(crate) info: DeviceInfo,
}

// SAFETY: a context handle is a plain token; the driver allows any thread to make it current.
unsafe impl Send for Device {}
// SAFETY: as above; the driver's own calls lock.
unsafe impl Sync for Device {}

/// Turns a driver's error into words: its own, and the name by which it is found.
fn device_error(doing: &str, error: result::DriverError) -> EngineError {
    let name = error.0;
    EngineError::Device(match error.error_string() {
        Ok(words) => format!("{doing}: {} ({name:?})", words.to_string_lossy()),
        Err(_) => format!("{doing}: {name:?}"),
    })
}

/// Why memory was not given: there is no room, or something else is wrong.
fn no_room(what: &'static str, bytes: usize, error: result::DriverError) -> EngineError {
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => EngineError::Memory { what, bytes: bytes as u64 },
        _ => device_error(what, error),
    }
}

/// The first driver with `cuLaunchKernelEx`, as CUDA numbers its versions.
const OLDEST_DRIVER: i32 = 11_080;

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// [`EngineError::Device`] with a sentence where there is no driver, no such device, or the
    /// driver lacks something that is needed.
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Device>, EngineError> {
        // SAFETY: it loads a library and calls nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(EngineError::Device("no CUDA driver library on this machine".to_owned()));
        }
        // Symbols are looked up at their first call, which panics where the driver is too old.
        let opened = catch_unwind(AssertUnwindSafe(|| Device::open_present(ordinal)));
        opened.unwrap_or_else(|_| Err(EngineError::Device("the CUDA driver is too old".to_owned())))
    }

    fn open_present(ordinal: usize) -> Result<Arc<Device>, EngineError> {
        result::init().map_err(|error| device_error("the CUDA driver does not start", error))?;
        let mut version = 0;
        // SAFETY: the output is a number that outlives the call.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(|error| device_error("asking for the driver's version", error))?;
        if version < OLDEST_DRIVER {
            let said = |version: i32| format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
            let (found, oldest) = (said(version), said(OLDEST_DRIVER));
            return Err(EngineError::Device(format!(
                "the driver is for {found}: expected {oldest} or newer"
            )));
        }
        let count = result::device::get_count().map_err(|error| device_error("counting devices", error))?;
        if ordinal >= count as usize {
            return Err(EngineError::Device(format!(
                "no CUDA device {ordinal}: the driver finds {count}, counted from 0"
            )));
        }
        let failed = |error| device_error("opening the CUDA device", error);
        let device = result::device::get(ordinal as i32).map_err(failed)?;
        // SAFETY: the device comes from the driver; the outputs are plain numbers.
        unsafe {
            let attribute = |what| result::device::get_attribute(device, what).map_err(failed);
            use sys::CUdevice_attribute as Attribute;
            let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let info = DeviceInfo {
                name: result::device::get_name(device).map_err(failed)?,
                arch: (10 * major + minor) as u32,
                processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
                memory: result::device::total_mem(device).map_err(failed)? as u64,
                l2: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as u32,
            };
            let context = result::primary_ctx::retain(device).map_err(failed)?;
            let device = Device { context, device, info };
            device.bind()?;
            Ok(Arc::new(device))
        }
    }

    /// Makes the device the calling thread's.
    pub(crate) fn bind(&self) -> Result<(), EngineError> {
        // SAFETY: the context is held until the device is dropped.
        unsafe { result::ctx::set_current(self.context) }
            .map_err(|error| device_error("choosing the CUDA device", error))
    }

    /// Bytes of memory that are free.
    pub(crate) fn free_memory(&self) -> Result<u64, EngineError> {
        self.bind()?;
        let (free, _) =
            result::mem_get_info().map_err(|error| device_error("asking for free memory", error))?;
        Ok(free as u64)
    }

    /// Waits for everything that was launched.
    pub(crate) fn synchronize(&self) -> Result<(), EngineError> {
        self.bind()?;
        result::ctx::synchronize().map_err(|error| device_error("a kernel failed", error))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the context was retained once and nothing that uses it is left.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory on a device.
pub(crate) struct Buffer {
    device: Arc<Device>,
    at: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    /// Memory whose contents are unset.
    ///
    /// # Errors
    /// [`EngineError::Memory`] if there is no room.
    pub(crate) fn new(device: &Arc<Device>, what: &'static str, bytes: usize) -> Result<Buffer, EngineError> {
        device.bind()?;
        // SAFETY: the memory is freed once, when the buffer is dropped.
        let at = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|error| no_room(what, bytes, error))?;
        Ok(Buffer { device: device.clone(), at, bytes })
    }

    /// Its address.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Its length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies numbers to byte `offset` and waits.
    pub(crate) fn put<T: Copy>(&self, offset: usize, data: &[T]) -> Result<(), EngineError> {
        self.check(offset, size_of_val(data))?;
        self.device.bind()?;
        // The call returns when the data has been read, which may be before it has arrived; our
        // streams do not wait for it by themselves.
        // SAFETY: the range was checked.
        unsafe { result::memcpy_htod_sync(self.at + offset as u64, data) }
            .and_then(|()| result::ctx::synchronize())
            .map_err(|error| device_error("copying to the device", error))
    }

    /// Copies its first bytes to here.
    pub(crate) fn get(&self, to: &mut [u8]) -> Result<(), EngineError> {
        self.check(0, to.len())?;
        self.device.bind()?;
        // SAFETY: the range was checked.
        unsafe { result::memcpy_dtoh_sync(to, self.at) }
            .map_err(|error| device_error("copying from the device", error))
    }

    /// Sets every byte, and waits.
    pub(crate) fn fill(&self, byte: u8) -> Result<(), EngineError> {
        self.device.bind()?;
        // The call does not wait for the device, whatever its name says.
        // SAFETY: it is the buffer's own memory.
        unsafe { result::memset_d8_sync(self.at, byte, self.bytes) }
            .and_then(|()| result::ctx::synchronize())
            .map_err(|error| device_error("setting memory", error))
    }

    fn check(&self, offset: usize, bytes: usize) -> Result<(), EngineError> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(EngineError::Device(format!("bytes {offset}+{bytes} of a buffer of {}", self.bytes)));
        }
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: it was allocated once and nobody frees it but us.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

/// Host memory that the device reads and writes by itself.
pub(crate) struct Pinned {
    device: Arc<Device>,
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: the memory belongs to the value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Zeroed memory.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Pinned, EngineError> {
        device.bind()?;
        // SAFETY: it is freed once, when the value is dropped; zeroed so that it may be read.
        unsafe {
            let at = result::malloc_host(bytes.max(8), 0)
                .map_err(|error| no_room("pinned host memory", bytes, error))?;
            std::ptr::write_bytes(at.cast::<u8>(), 0, bytes.max(8));
            Ok(Pinned { device: device.clone(), at, bytes })
        }
    }

    /// The memory as numbers.
    pub(crate) fn words(&mut self) -> &mut [u32] {
        // SAFETY: page-aligned memory of at least that many bytes, initialised, borrowed with self.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast::<u32>(), self.bytes / 4) }
    }

    /// Its length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: it was allocated once and nobody frees it but us.
        let _ = unsafe { result::free_host(self.at) };
    }
}

/// A queue of work on a device.
pub(crate) struct Stream {
    pub(crate) device: Arc<Device>,
    stream: sys::CUstream,
}

// SAFETY: the driver allows any thread to use a stream; the backend uses it from one at a time.
unsafe impl Send for Stream {}

impl Stream {
    /// A stream that does not wait for others.
    pub(crate) fn new(device: &Arc<Device>) -> Result<Stream, EngineError> {
        device.bind()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| device_error("creating a stream", error))?;
        Ok(Stream { device: device.clone(), stream })
    }

    /// The handle, for libraries.
    pub(crate) fn raw(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// Waits for all work.
    pub(crate) fn synchronize(&self) -> Result<(), EngineError> {
        self.device.bind()?;
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(|error| device_error("a kernel failed", error))
    }

    /// Queues a copy within the device.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), EngineError> {
        self.device.bind()?;
        // SAFETY: callers pass ranges of buffers that they own.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }
            .map_err(|error| device_error("copying on the device", error))
    }

    /// Queues a copy from pinned memory, whose contents must stay until it is done.
    pub(crate) fn upload(
        &self,
        to: &Buffer,
        offset: usize,
        from: &Pinned,
        first: usize,
        bytes: usize,
    ) -> Result<(), EngineError> {
        to.check(offset, bytes)?;
        check_pinned(from, first, bytes)?;
        self.device.bind()?;
        // SAFETY: both ranges were checked.
        let code = unsafe {
            let source = from.at.cast::<u8>().add(first);
            sys::cuMemcpyHtoDAsync_v2(to.at + offset as u64, source.cast(), bytes, self.stream)
        };
        code.result().map_err(|error| device_error("copying to the device", error))
    }

    /// Queues a copy to pinned memory, which must not be read before it is done.
    pub(crate) fn download(
        &self,
        to: &Pinned,
        first: usize,
        from: &Buffer,
        offset: usize,
        bytes: usize,
    ) -> Result<(), EngineError> {
        from.check(offset, bytes)?;
        check_pinned(to, first, bytes)?;
        self.device.bind()?;
        // SAFETY: both ranges were checked.
        let code = unsafe {
            let target = to.at.cast::<u8>().add(first);
            sys::cuMemcpyDtoHAsync_v2(target.cast(), from.at + offset as u64, bytes, self.stream)
        };
        code.result().map_err(|error| device_error("copying from the device", error))
    }

    /// Lets later work on this stream wait for what another stream has queued so far.
    pub(crate) fn wait_for(&self, other: &Stream, event: &Event) -> Result<(), EngineError> {
        event.record(other)?;
        // SAFETY: the stream and the event live.
        unsafe {
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            result::stream::wait_event(self.stream, event.event, flags)
        }
        .map_err(|error| device_error("waiting for a stream", error))
    }

    /// Queues a kernel.
    pub(crate) fn launch(&self, kernel: &Kernel, shape: Shape, args: &mut Args) -> Result<(), EngineError> {
        self.device.bind()?;
        let mut at: Vec<*mut c_void> =
            args.words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        // SAFETY: the typed launchers in `kernels.rs` pass what each kernel takes, over buffers
        // that they own; every argument fills at most one aligned word.
        unsafe {
            let mut attribute: sys::CUlaunchAttribute = std::mem::zeroed();
            attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attribute.value.programmaticStreamSerializationAllowed = 1;
            let config = sys::CUlaunchConfig {
                gridDimX: shape.grid[0],
                gridDimY: shape.grid[1],
                gridDimZ: shape.grid[2],
                blockDimX: shape.block,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: 0,
                hStream: self.stream,
                attrs: &raw mut attribute,
                numAttrs: u32::from(shape.early),
            };
            sys::cuLaunchKernelEx(&raw const config, kernel.function, at.as_mut_ptr(), std::ptr::null_mut())
                .result()
        }
        .map_err(|error| device_error(&format!("launching {}", kernel.name), error))
    }

    /// Records what `work` queues instead of running it.
    pub(crate) fn capture(
        &self,
        work: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<Graph, EngineError> {
        self.device.bind()?;
        let failed = |error| device_error("capturing a graph", error);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives; a failed capture is ended before its error is returned, and
        // the graph is destroyed once, as soon as it is instantiated.
        unsafe {
            result::stream::begin_capture(self.stream, mode).map_err(failed)?;
            let done = work();
            let graph = result::stream::end_capture(self.stream).map_err(failed);
            if let Err(error) = done {
                if let Ok(graph) = graph {
                    let _ = result::graph::destroy(graph);
                }
                return Err(error);
            }
            let graph = graph?;
            let mut exec = MaybeUninit::uninit();
            let made = sys::cuGraphInstantiateWithFlags(exec.as_mut_ptr(), graph, 0).result();
            let _ = result::graph::destroy(graph);
            made.map_err(failed)?;
            Ok(Graph { device: self.device.clone(), exec: exec.assume_init() })
        }
    }

    /// Queues a graph.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<(), EngineError> {
        self.device.bind()?;
        // SAFETY: the graph was instantiated and lives.
        unsafe { result::graph::launch(graph.exec, self.stream) }
            .map_err(|error| device_error("launching a graph", error))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: it was created once; work that is queued still completes.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

fn check_pinned(memory: &Pinned, first: usize, bytes: usize) -> Result<(), EngineError> {
    if first.checked_add(bytes).is_none_or(|end| end > memory.bytes) {
        let len = memory.bytes;
        return Err(EngineError::Device(format!("bytes {first}+{bytes} of {len} of pinned memory")));
    }
    Ok(())
}

/// A point in a stream.
pub(crate) struct Event {
    device: Arc<Device>,
    event: sys::CUevent,
}

// SAFETY: the driver allows any thread to use an event.
unsafe impl Send for Event {}

impl Event {
    /// An event that measures time.
    pub(crate) fn new(device: &Arc<Device>) -> Result<Event, EngineError> {
        device.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(|error| device_error("creating an event", error))?;
        Ok(Event { device: device.clone(), event })
    }

    /// Records what the stream has queued so far.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), EngineError> {
        self.device.bind()?;
        // SAFETY: both live.
        unsafe { result::event::record(self.event, stream.stream) }
            .map_err(|error| device_error("recording an event", error))
    }

    /// Waits until what was recorded has been done; returns at once if nothing was recorded yet.
    pub(crate) fn wait(&self) -> Result<(), EngineError> {
        self.device.bind()?;
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.event) }
            .map_err(|error| device_error("a kernel failed", error))
    }

    /// Seconds from an earlier event to this one; waits for it.
    pub(crate) fn seconds_since(&self, start: &Event) -> Result<f64, EngineError> {
        self.device.bind()?;
        let failed = |error| device_error("timing", error);
        let mut passed = 0.0_f32;
        // The symbol that every driver has: its successor came with CUDA 12.8.
        // SAFETY: both events live and were recorded; the type is that of cuda.h.
        unsafe {
            type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
            result::event::synchronize(self.event).map_err(failed)?;
            let elapsed = sys::culib().get::<Elapsed>("cuEventElapsedTime");
            let elapsed = elapsed.map_err(|error| EngineError::Device(format!("timing: {error}")))?;
            elapsed(&raw mut passed, start.event, self.event).result().map_err(failed)?;
        }
        Ok(f64::from(passed) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: it was created once.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}

/// Work that was captured.
pub(crate) struct Graph {
    device: Arc<Device>,
    exec: sys::CUgraphExec,
}

// SAFETY: the backend uses a graph from one thread at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: it was instantiated once.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

/// Compiled kernels.
pub(crate) struct Module {
    device: Arc<Device>,
    module: sys::CUmodule,
}

// SAFETY: the driver allows any thread to use a module.
unsafe impl Send for Module {}
// SAFETY: as above; loading and unloading lock in the driver.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin, or PTX that ends with a zero byte.
    pub(crate) fn load(device: &Arc<Device>, image: &[u8]) -> Result<Module, EngineError> {
        device.bind()?;
        // SAFETY: NVRTC made the image, or a cache whose hash was checked.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(|error| device_error("loading the kernels", error))?;
        Ok(Module { device: device.clone(), module })
    }

    /// A kernel by name.
    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel, EngineError> {
        self.device.bind()?;
        let c_name = CString::new(name).expect("names of kernels hold no zero byte");
        // SAFETY: the module lives as long as the backend that holds both.
        unsafe {
            let failed = |error| device_error(&format!("kernel {name}"), error);
            let function = result::module::get_function(self.module, c_name).map_err(failed)?;
            Ok(Kernel { name: name.to_owned(), function })
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: it was loaded once.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// A kernel of a module that its holder keeps.
pub(crate) struct Kernel {
    name: String,
    function: sys::CUfunction,
}

// SAFETY: a function handle is a plain token.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: u32,
    /// Whether it may start before the kernel before it ends, because it waits by itself.
    pub(crate) early: bool,
}

/// Arguments of a launch, in order.
#[derive(Default)]
pub(crate) struct Args {
    words: Vec<u64>,
}

impl Args {
    /// No arguments yet.
    pub(crate) fn new() -> Args {
        Args::default()
    }

    /// A pointer.
    pub(crate) fn at(mut self, pointer: u64) -> Args {
        self.words.push(pointer);
        self
    }

    /// A 32-bit number.
    pub(crate) fn int(mut self, number: u32) -> Args {
        self.words.push(u64::from(number));
        self
    }

    /// A 64-bit number.
    pub(crate) fn long(mut self, number: u64) -> Args {
        self.words.push(number);
        self
    }

    /// A 32-bit float.
    pub(crate) fn float(mut self, number: f32) -> Args {
        self.words.push(u64::from(number.to_bits()));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error_in_words() {
        let Err(error) = Device::open(9999) else { panic!("there are not that many devices") };
        assert!(error.to_string().contains("CUDA"), "{error}");
    }
}
