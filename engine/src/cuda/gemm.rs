//! Matrix products of many rows by cuBLASLt: bf16 in, f32 sums, f32 out.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::from_ref;

use cudarc::cublaslt::{result, sys};

use super::driver::{Buffer, Stream};
use crate::error::EngineError;

/// Bytes that cuBLASLt may use while it computes: what its documentation advises for Hopper.
const WORKSPACE: usize = 32 << 20;

/// A product that has been prepared.
struct Prepared {
    product: sys::cublasLtMatmulDesc_t,
    weights: sys::cublasLtMatrixLayout_t,
    inputs: sys::cublasLtMatrixLayout_t,
    outputs: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// cuBLASLt and the products that it was asked for, by outputs, inputs and rows.
pub(crate) struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    prepared: BTreeMap<(usize, usize, usize), Prepared>,
}

// SAFETY: the library's handle may be used from any thread; the backend uses it from one at a time.
unsafe impl Send for Gemm {}

fn failed(error: result::CublasError) -> EngineError {
    EngineError::Device(format!("cuBLASLt: {error}"))
}

impl Gemm {
    /// Opens the library; none where there is none, since the kernels can do without.
    pub(crate) fn open(stream: &Stream) -> Result<Option<Gemm>, EngineError> {
        super::compile::preload();
        // SAFETY: it loads a library and calls nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        stream.device.bind()?;
        let Ok(Ok(handle)) = catch_unwind(AssertUnwindSafe(result::create_handle)) else { return Ok(None) };
        let workspace = Buffer::new(&stream.device, "the workspace of cuBLASLt", WORKSPACE);
        if workspace.is_err() {
            // SAFETY: the handle was just made and is not used again.
            let _ = unsafe { result::destroy_handle(handle) };
        }
        Ok(Some(Gemm { handle, workspace: workspace?, prepared: BTreeMap::new() }))
    }

    /// Queues `outputs[n][rows] = inputs[n][cols] * weights[rows][cols]^T`.
    pub(crate) fn multiply(
        &mut self,
        stream: &Stream,
        weights: u64,
        inputs: u64,
        outputs: u64,
        [rows, cols, n]: [usize; 3],
    ) -> Result<(), EngineError> {
        stream.device.bind()?;
        if !self.prepared.contains_key(&(rows, cols, n)) {
            let prepared = self.prepare(rows, cols, n)?;
            self.prepared.insert((rows, cols, n), prepared);
        }
        let prepared = &self.prepared[&(rows, cols, n)];
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: callers pass buffers of these sizes; descriptors live as long as `self`; the
        // scalars are read before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                prepared.product,
                from_ref(&one).cast(),
                from_ref(&zero).cast(),
                weights as *const c_void,
                prepared.weights,
                inputs as *const c_void,
                prepared.inputs,
                outputs as *const c_void,
                prepared.outputs,
                outputs as *mut c_void,
                prepared.outputs,
                &raw const prepared.algorithm,
                self.workspace.at() as *mut c_void,
                self.workspace.bytes(),
                stream.raw().cast(),
            )
        }
        .map_err(failed)
    }

    /// Describes a product. The library counts columns first, so our row-major weights are a
    /// `cols x rows` matrix that it transposes.
    fn prepare(&self, rows: usize, cols: usize, n: usize) -> Result<Prepared, EngineError> {
        let half = sys::cudaDataType::CUDA_R_16BF;
        let full = sys::cudaDataType::CUDA_R_32F;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let (rows, cols, n) = (rows as u64, cols as u64, n as u64);
        // SAFETY: every descriptor is used with the library that made it, with values of the sizes
        // that it expects.
        unsafe {
            let product = result::create_matmul_desc(compute, full).map_err(failed)?;
            // CUBLAS_OP_T.
            let transposed = 1_i32;
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
            result::set_matmul_desc_attribute(
                product,
                attribute,
                from_ref(&transposed).cast(),
                size_of_val(&transposed),
            )
            .map_err(failed)?;
            let weights = result::create_matrix_layout(half, cols, rows, cols as i64).map_err(failed)?;
            let inputs = result::create_matrix_layout(half, cols, n, cols as i64).map_err(failed)?;
            let outputs = result::create_matrix_layout(full, rows, n, rows as i64).map_err(failed)?;
            let wish = result::create_matmul_pref().map_err(failed)?;
            let attribute =
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let bytes = WORKSPACE;
            let set = result::set_matmul_pref_attribute(
                wish,
                attribute,
                from_ref(&bytes).cast(),
                size_of_val(&bytes),
            );
            let found = set.and_then(|()| {
                result::get_matmul_algo_heuristic(
                    self.handle,
                    product,
                    weights,
                    inputs,
                    outputs,
                    outputs,
                    wish,
                )
            });
            let _ = result::destroy_matmul_pref(wish);
            let algorithm = found.map_err(failed)?.algo;
            Ok(Prepared { product, weights, inputs, outputs, algorithm })
        }
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: everything was made once by this handle; nothing uses it any more.
        unsafe {
            for prepared in self.prepared.values() {
                let _ = result::destroy_matmul_desc(prepared.product);
                for layout in [prepared.weights, prepared.inputs, prepared.outputs] {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}
