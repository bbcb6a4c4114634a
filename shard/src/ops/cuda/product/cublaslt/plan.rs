//! How one kind of product is computed: its descriptors, and the algorithm cuBLASLt has for it.

use std::ffi::c_void;

use candle_core::Error;
use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys::{
    self, cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t as Wish,
};
use candle_core::cuda_backend::cudarc::driver::sys::CUstream;

use crate::ops::cuda::kernel::Address;
use crate::ops::cuda::product::Sizes;

/// Alignment beyond which no algorithm asks for more, in bytes.
const MOST_ALIGNED: u64 = 256;

/// A matrix is transposed.
const TRANSPOSED: i32 = 1;

/// What an algorithm is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// Of weights and of the input; outputs are f32.
    pub(super) element: sys::cudaDataType,
    pub(super) sizes: Sizes,
    /// Elements from a row of the output to the next.
    pub(super) stride: usize,
    pub(super) alignments: Alignments,
}

/// Bytes that divide addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Alignments {
    weights: u32,
    input: u32,
    output: u32,
}

/// Where a product's numbers are.
#[derive(Clone, Copy)]
pub(super) struct Places {
    /// (outputs, inputs)
    pub(super) weights: Address,
    /// (rows, inputs)
    pub(super) input: Address,
    /// (rows, stride) of f32
    pub(super) output: Address,
    pub(super) workspace: Address,
}

impl Places {
    pub(super) fn alignments(&self) -> Alignments {
        let [weights, input, output] = [self.weights, self.input, self.output].map(alignment);
        Alignments { weights, input, output }
    }
}

fn alignment(Address(address): Address) -> u32 {
    // The most where the address is 0.
    let lowest_bit = address & address.wrapping_neg();
    if lowest_bit == 0 { MOST_ALIGNED as u32 } else { lowest_bit.min(MOST_ALIGNED) as u32 }
}

impl Kind {
    /// What cuBLASLt answers, and to what.
    pub(super) fn failed(&self, error: CublasError) -> Error {
        let Self { element, sizes: Sizes { rows, inputs, outputs }, stride, .. } = self;
        Error::msg(format!(
            "multiply {rows} rows of {inputs} {element:?} by {outputs} columns, {stride} elements apart: cuBLASLt \
             answers {:?}",
            error.0
        ))
    }
}

/// Everything a product of one kind needs beside its addresses.
pub(super) struct Plan {
    product: Descriptor,
    weights: MatrixLayout,
    input: MatrixLayout,
    output: MatrixLayout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: its parts are the host's memory, which nobody changes once they are made.
unsafe impl Send for Plan {}

impl Plan {
    /// Asks for the algorithm. This computes nothing, and may be done while work is recorded.
    pub(super) fn of(
        library: sys::cublasLtHandle_t,
        kind: &Kind,
        workspace_bytes: usize,
    ) -> Result<Self, CublasError> {
        let Kind { element, sizes: Sizes { rows, inputs, outputs }, stride, alignments } = *kind;
        // cuBLASLt counts columns first: to it the matrix is (inputs, outputs), transposed, and the rows (inputs, rows).
        let product = Descriptor::new()?;
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        let weights = MatrixLayout::new(element, (inputs, outputs), inputs)?;
        let input = MatrixLayout::new(element, (inputs, rows), inputs)?;
        let output = MatrixLayout::new(sys::cudaDataType::CUDA_R_32F, (outputs, rows), stride)?;
        let preference = Preference::new()?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes)?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignments.weights)?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignments.input)?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignments.output)?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignments.output)?;
        // SAFETY: all of them are there until the call returns.
        let found = unsafe {
            let (product, of) = (product.0, (weights.0, input.0, output.0));
            result::get_matmul_algo_heuristic(library, product, of.0, of.1, of.2, of.2, preference.0)
        }?;
        Ok(Self { product, weights, input, output, algorithm: found.algo })
    }

    /// Starts the product, or records it where the stream is being captured.
    ///
    /// # Safety
    /// The library is that of [`Self::of`] and its device the current one. The addresses are of what the plan is for and as
    /// much aligned, with a workspace of so many bytes as the plan was made with, on the stream's device, and stay until the
    /// product is done.
    pub(super) unsafe fn start(
        &self,
        library: sys::cublasLtHandle_t,
        places: Places,
        (workspace_bytes, stream): (usize, CUstream),
    ) -> Result<(), CublasError> {
        // They are read before the call returns.
        let (one, zero) = (1.0_f32, 0.0_f32);
        let place = |Address(address): Address| address as *mut c_void;
        let output = place(places.output);
        // SAFETY: the caller has seen to it; the descriptors are there as long as this is.
        unsafe {
            result::matmul(
                library,
                self.product.0,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                place(places.weights),
                self.weights.0,
                place(places.input),
                self.input.0,
                output,
                self.output.0,
                output,
                self.output.0,
                &raw const self.algorithm,
                place(places.workspace),
                workspace_bytes,
                stream.cast(),
            )
        }
    }
}

/// Products with sums of f32 of what is f32 or narrower, each factor as it is.
struct Descriptor(sys::cublasLtMatmulDesc_t);

impl Descriptor {
    fn new() -> Result<Self, CublasError> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F).map(Self)
    }

    fn set(&self, attribute: Attribute, value: i32) -> Result<(), CublasError> {
        let value = (&raw const value).cast();
        // SAFETY: the value is of the attribute's size, and read before the call returns.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value, size_of::<i32>()) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// How a matrix lies in memory.
struct MatrixLayout(sys::cublasLtMatrixLayout_t);

impl MatrixLayout {
    fn new(
        element: sys::cudaDataType,
        (rows, columns): (usize, usize),
        stride: usize,
    ) -> Result<Self, CublasError> {
        result::create_matrix_layout(element, rows as u64, columns as u64, stride as i64).map(Self)
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm may count on.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        result::create_matmul_pref().map(Self)
    }

    /// Of a number of the attribute's own width.
    fn set<T: Copy>(&self, wish: Wish, value: T) -> Result<(), CublasError> {
        let value = (&raw const value).cast();
        // SAFETY: the value is read before the call returns, which refuses one of another size.
        unsafe { result::set_matmul_pref_attribute(self.0, wish, value, size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_aligned_to_its_lowest_bit() {
        assert_eq!(
            [4, 6, 48, 256, 0x1000].map(|address| alignment(Address(address))),
            [4, 2, 16, 256, 256]
        );
    }

    #[test]
    fn an_error_says_what_was_multiplied() {
        let alignments = Alignments { weights: 256, input: 256, output: 4 };
        let sizes = Sizes { rows: 61, inputs: 1031, outputs: 67 };
        let kind = Kind { element: sys::cudaDataType::CUDA_R_16BF, sizes, stride: 70, alignments };
        let error = kind.failed(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)).to_string();
        assert!(error.contains("61 rows of 1031 CUDA_R_16BF by 67 columns, 70 elements apart"), "{error}");
        assert!(error.contains("NOT_SUPPORTED"), "{error}");
    }
}
