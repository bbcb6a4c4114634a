//! The kernels there are, and what starts one.

use std::ffi::c_void;

use candle_core::Result;

/// Threads of a block of kernels that work element by element.
pub(crate) const THREADS: u32 = 256;

/// Where something is in a device's memory, or in the host's where the host emulates one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    /// What is not there.
    pub(crate) const NULL: Self = Self(0);

    /// `bytes` further on.
    pub(crate) fn plus(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Blocks along x, y and z.
    pub(crate) blocks: [u32; 3],
    /// Threads of a block, along x.
    pub(crate) threads: u32,
    /// Bytes of memory of a block, beside what the kernel declares.
    pub(crate) shared_bytes: u32,
}

impl Grid {
    /// Blocks along x.
    pub(crate) fn along_x(blocks: usize, threads: u32) -> Self {
        Self { blocks: [blocks as u32, 1, 1], threads, shared_bytes: 0 }
    }

    /// A thread for each of so many elements.
    pub(crate) fn of_elements(elements: usize) -> Self {
        Self::along_x(elements.div_ceil(THREADS as usize), THREADS)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.blocks.contains(&0)
    }
}

/// The one argument of a kernel.
///
/// # Safety
/// It has C's layout and the fields of the structure of the same name in `kernels/`; its addresses are of memory as
/// large as the kernel's description says for the launch it is made for.
pub(crate) unsafe trait Parameters {}

/// Where kernels run: a device's stream, or the host.
pub(crate) trait Executor {
    /// Starts a kernel; those started before come first.
    ///
    /// # Errors
    /// When the device refuses it.
    ///
    /// # Safety
    /// `parameters` points to the [`Parameters`] of this kernel.
    unsafe fn start(&self, kernel: Kernel, parameters: *const c_void, grid: Grid) -> Result<()>;
}

/// Starts `kernel`, where it has anything to do.
pub(crate) fn launch<P: Parameters>(
    on: &dyn Executor,
    kernel: Kernel,
    parameters: &P,
    grid: Grid,
) -> Result<()> {
    if grid.is_empty() {
        return Ok(());
    }
    // SAFETY: every caller passes the parameters of the kernel it names.
    unsafe { on.start(kernel, std::ptr::from_ref(parameters).cast(), grid) }
}

/// Names each kernel for the device and for the host.
macro_rules! kernels {
    ($($module:ident: $($kernel:ident = $name:literal $emulated:ident),+;)+) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Kernel {
            $($(#[doc = $name] $kernel),+),+
        }

        /// A file of kernels.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Module {
            $(#[doc = stringify!($module)] $module),+
        }

        impl Kernel {
            /// Every one.
            pub(crate) const ALL: &[Self] = &[$($(Self::$kernel),+),+];

            /// The file it is in.
            pub(crate) fn module(self) -> Module {
                match self { $($(Self::$kernel)|+ => Module::$module),+ }
            }

            /// Its symbol.
            pub(crate) fn name(self) -> &'static str {
                match self { $($(Self::$kernel => concat!("lockstep_", $name)),+),+ }
            }

            /// It as a function of the host.
            pub(crate) fn emulated(self) -> Emulated {
                match self { $($(Self::$kernel => $emulated),+),+ }
            }
        }

        unsafe extern "C" {
            $($(fn $emulated(parameters: *const c_void, grid: *const u32, threads: u32, shared_bytes: usize);)+)+
        }
    };
}

/// A kernel compiled for the host: its parameters, three numbers of blocks, threads, bytes of shared memory.
pub(crate) type Emulated = unsafe extern "C" fn(*const c_void, *const u32, u32, usize);

kernels! {
    Norms: Norm = "norm" emulated_norm,
        ProjectionSquares = "projection_squares" emulated_projection_squares,
        ProjectionNorm = "projection_norm" emulated_projection_norm;
    Rows: WriteHeadsF32 = "write_heads_f32" emulated_write_heads_f32,
        WriteHeadsBf16 = "write_heads_bf16" emulated_write_heads_bf16,
        WriteHeadsF16 = "write_heads_f16" emulated_write_heads_f16,
        WriteHeadsInt8 = "write_heads_int8" emulated_write_heads_int8,
        WriteHeadsFp8 = "write_heads_fp8" emulated_write_heads_fp8,
        Activation = "activation" emulated_activation, AddBias = "add_bias" emulated_add_bias,
        LogitTransform = "logit_transform" emulated_logit_transform,
        RoundRowsBf16 = "round_rows_bf16" emulated_round_rows_bf16,
        RoundRowsF16 = "round_rows_f16" emulated_round_rows_f16,
        PickRowsF32 = "pick_rows_f32" emulated_pick_rows_f32, PickRowsBf16 = "pick_rows_bf16" emulated_pick_rows_bf16,
        PickRowsF16 = "pick_rows_f16" emulated_pick_rows_f16,
        AddRows = "add_rows" emulated_add_rows, SumParts = "sum_parts" emulated_sum_parts,
        JoinVocabulary = "join_vocabulary" emulated_join_vocabulary;
    Products: ProductF32 = "product_f32" emulated_product_f32,
        ArrangeInputs = "arrange_inputs" emulated_arrange_inputs;
    FewProducts: FewBf16Of8 = "few_bf16_8" emulated_few_bf16_8,
        FewBf16Of16 = "few_bf16_16" emulated_few_bf16_16,
        FewBf16Of32 = "few_bf16_32" emulated_few_bf16_32,
        FewBf16Of64 = "few_bf16_64" emulated_few_bf16_64,
        FewF16Of8 = "few_f16_8" emulated_few_f16_8,
        FewF16Of16 = "few_f16_16" emulated_few_f16_16,
        FewF16Of32 = "few_f16_32" emulated_few_f16_32,
        FewF16Of64 = "few_f16_64" emulated_few_f16_64;
    FewQuantized: FewInt8Of8 = "few_int8_8" emulated_few_int8_8,
        FewInt8Of16 = "few_int8_16" emulated_few_int8_16,
        FewInt8Of32 = "few_int8_32" emulated_few_int8_32,
        FewInt8Of64 = "few_int8_64" emulated_few_int8_64,
        FewInt8MinimumOf8 = "few_int8_minimum_8" emulated_few_int8_minimum_8,
        FewInt8MinimumOf16 = "few_int8_minimum_16" emulated_few_int8_minimum_16,
        FewInt8MinimumOf32 = "few_int8_minimum_32" emulated_few_int8_minimum_32,
        FewInt8MinimumOf64 = "few_int8_minimum_64" emulated_few_int8_minimum_64,
        FewInt8ShortOf8 = "few_int8_short_8" emulated_few_int8_short_8,
        FewInt8ShortOf16 = "few_int8_short_16" emulated_few_int8_short_16,
        FewInt8ShortOf32 = "few_int8_short_32" emulated_few_int8_short_32,
        FewInt8ShortOf64 = "few_int8_short_64" emulated_few_int8_short_64,
        FewInt4Of8 = "few_int4_8" emulated_few_int4_8,
        FewInt4Of16 = "few_int4_16" emulated_few_int4_16,
        FewInt4Of32 = "few_int4_32" emulated_few_int4_32,
        FewInt4Of64 = "few_int4_64" emulated_few_int4_64,
        FewInt4MinimumOf8 = "few_int4_minimum_8" emulated_few_int4_minimum_8,
        FewInt4MinimumOf16 = "few_int4_minimum_16" emulated_few_int4_minimum_16,
        FewInt4MinimumOf32 = "few_int4_minimum_32" emulated_few_int4_minimum_32,
        FewInt4MinimumOf64 = "few_int4_minimum_64" emulated_few_int4_minimum_64,
        FewFloat8Of8 = "few_float8_8" emulated_few_float8_8,
        FewFloat8Of16 = "few_float8_16" emulated_few_float8_16,
        FewFloat8Of32 = "few_float8_32" emulated_few_float8_32,
        FewFloat8Of64 = "few_float8_64" emulated_few_float8_64;
    ManyProducts: ManyBf16 = "many_bf16" emulated_many_bf16,
        ManyF16 = "many_f16" emulated_many_f16,
        ManyInt8 = "many_int8" emulated_many_int8,
        ManyInt8Minimum = "many_int8_minimum" emulated_many_int8_minimum,
        ManyInt8Short = "many_int8_short" emulated_many_int8_short,
        ManyInt4 = "many_int4" emulated_many_int4,
        ManyInt4Minimum = "many_int4_minimum" emulated_many_int4_minimum,
        ManyFloat8 = "many_float8" emulated_many_float8;
    Experts: Route = "route" emulated_route, GroupRows = "group_rows" emulated_group_rows,
        Combine = "combine" emulated_combine;
    ExpertProducts: ExpertsBf16 = "experts_bf16" emulated_experts_bf16,
        ExpertsF16 = "experts_f16" emulated_experts_f16,
        ExpertsInt8 = "experts_int8" emulated_experts_int8,
        ExpertsInt4 = "experts_int4" emulated_experts_int4,
        ExpertsFloat8 = "experts_float8" emulated_experts_float8;
    Attention: AttendF32Of64 = "attend_f32_64" emulated_attend_f32_64,
        AttendF32Of128 = "attend_f32_128" emulated_attend_f32_128,
        AttendF32Of256 = "attend_f32_256" emulated_attend_f32_256,
        AttendBf16Of64 = "attend_bf16_64" emulated_attend_bf16_64,
        AttendBf16Of96 = "attend_bf16_96" emulated_attend_bf16_96,
        AttendBf16Of128 = "attend_bf16_128" emulated_attend_bf16_128,
        AttendBf16Of256 = "attend_bf16_256" emulated_attend_bf16_256,
        AttendF16Of64 = "attend_f16_64" emulated_attend_f16_64,
        AttendF16Of96 = "attend_f16_96" emulated_attend_f16_96,
        AttendF16Of128 = "attend_f16_128" emulated_attend_f16_128,
        AttendF16Of256 = "attend_f16_256" emulated_attend_f16_256,
        AttendInt8Of64 = "attend_int8_64" emulated_attend_int8_64,
        AttendInt8Of96 = "attend_int8_96" emulated_attend_int8_96,
        AttendInt8Of128 = "attend_int8_128" emulated_attend_int8_128,
        AttendInt8Of256 = "attend_int8_256" emulated_attend_int8_256,
        AttendFp8Of64 = "attend_fp8_64" emulated_attend_fp8_64,
        AttendFp8Of96 = "attend_fp8_96" emulated_attend_fp8_96,
        AttendFp8Of128 = "attend_fp8_128" emulated_attend_fp8_128,
        AttendFp8Of256 = "attend_fp8_256" emulated_attend_fp8_256,
        FoldSplits = "fold_splits" emulated_fold_splits;
    Sampling: Sample = "sample" emulated_sample, FeedTokens = "feed_tokens" emulated_feed_tokens;
}
