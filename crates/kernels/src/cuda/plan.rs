//! The launch of an op: kernel, number of threads, arguments.
//!
//! Nothing here needs a GPU: tests run the same launches on the CPU, see `emulator.rs`.

use crate::{Activation, GroupNormOptions};

/// Threads of a block where nothing else decides.
const THREADS: usize = 256;

/// Shared memory that every GPU gives a block unasked, in bytes.
const SHARED: usize = 48 << 10;

/// Blocks that keep a large GPU busy.
const BLOCKS: usize = 528;

/// Queries and keys of a sequence that one warp does alone.
const SHORT: usize = 32;

/// Dimensions for which there is an attention, and the keys of a tile of `attention_long`.
const DIMS: [(usize, usize); 5] = [(16, 64), (48, 64), (64, 64), (80, 64), (160, 32)];

/// A dtype that kernels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    F32,
    F16,
    Bf16,
}

impl Format {
    #[cfg(test)]
    pub(super) const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Values of 16 bytes.
    pub(super) fn wide(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 8,
        }
    }
}

/// Format of tensors, and whether all of them are aligned to 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) format: Format,
    pub(super) aligned: bool,
}

impl Reading {
    /// Values that are read at once of rows of `width`.
    fn together(self, width: usize) -> usize {
        let wide = self.format.wide();
        if self.aligned && width.is_multiple_of(wide) { wide } else { 1 }
    }

    fn name(self, op: &str, together: usize) -> String {
        format!("{op}_{}_x{together}", self.format.name())
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    Word(u32),
    /// A buffer of the launch, by index.
    Buffer(usize),
}

/// A kernel on a grid of one dimension.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) kernel: String,
    /// The file that it is in.
    pub(super) module: &'static str,
    pub(super) blocks: u32,
    pub(super) threads: u32,
    /// Bytes of shared memory.
    pub(super) shared: u32,
    pub(super) args: Vec<Arg>,
}

/// Collects arguments; sizes beyond 32 bits have no kernel.
struct Args(Option<Vec<Arg>>);

impl Args {
    fn buffers(count: usize) -> Self {
        Self(Some((0..count).map(Arg::Buffer).collect()))
    }

    fn of(buffers: &[usize]) -> Self {
        Self(Some(buffers.iter().copied().map(Arg::Buffer).collect()))
    }

    fn sizes(mut self, sizes: &[usize]) -> Self {
        let words: Option<Vec<_>> =
            sizes.iter().map(|size| u32::try_from(*size).ok().map(Arg::Word)).collect();
        self.0 = self.0.zip(words).map(|(args, words)| [args, words].concat());
        self
    }

    fn number(mut self, value: f64) -> Self {
        if let Some(args) = &mut self.0 {
            args.push(Arg::Word((value as f32).to_bits()));
        }
        self
    }

    fn launch(
        self,
        (module, kernel): (&'static str, String),
        blocks: usize,
        threads: usize,
        shared: usize,
    ) -> Option<Launch> {
        // The last thread has a number, too.
        let there = blocks > 0 && shared <= SHARED && blocks.checked_mul(threads)? < 1 << 32;
        Some(Launch {
            kernel,
            module,
            blocks: i32::try_from(blocks).ok().filter(|_| there)?.cast_unsigned(),
            threads: threads as u32,
            shared: shared as u32,
            args: self.0?,
        })
    }

    /// A thread for each of `chunks`.
    fn launch_flat(self, module: &'static str, kernel: String, chunks: usize) -> Option<Launch> {
        self.launch((module, kernel), chunks.div_ceil(THREADS), THREADS, 0)
    }
}

/// The epilogue of a product `(rows, width)`, in place.
///
/// Buffers: the product, bias, shift, residual; whatever for those that are not among `parts`.
pub(super) fn epilogue(
    reading: Reading,
    (rows, width): (usize, usize),
    parts: [bool; 3],
    activation: Activation,
) -> Option<Launch> {
    let together = reading.together(width);
    let chunks = rows * width / together;
    let parts = parts.iter().enumerate().map(|(i, part)| usize::from(*part) << i).sum();
    let activation = match activation {
        Activation::None => 0,
        Activation::Silu => 1,
        Activation::Relu => 2,
    };
    let args = Args::buffers(4).sizes(&[chunks, width, parts, activation]);
    args.launch_flat("elementwise", reading.name("epilogue", together), chunks)
}

/// Gated GELU from `(rows, 2 width)` to `(rows, width)`. Buffers: the input, its bias, the result.
pub(super) fn geglu(
    reading: Reading,
    (rows, width): (usize, usize),
    biased: bool,
) -> Option<Launch> {
    let together = reading.together(width);
    let chunks = rows * width / together;
    let args = Args::buffers(3).sizes(&[chunks, width, usize::from(biased)]);
    // The input's chunks are counted, too.
    u32::try_from(2 * chunks).ok()?;
    args.launch_flat("elementwise", reading.name("geglu", together), chunks)
}

/// Sizes of a convolution of `(images, height, width, channels)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Patches {
    pub(super) images: usize,
    pub(super) channels: usize,
    /// Lines and columns of the image, of the image stretched, and of the result.
    pub(super) size: (usize, usize),
    pub(super) seen: (usize, usize),
    pub(super) out: (usize, usize),
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Zeros before the first line and column.
    pub(super) before: usize,
}

/// Rows of [`Patches`] for the `count` outputs from `first` on. Buffers: the images, the rows.
pub(super) fn patches(
    reading: Reading,
    given: &Patches,
    first: usize,
    count: usize,
) -> Option<Launch> {
    let Patches { images, channels, size, seen, out, kernel, stride, before } = *given;
    let together = reading.together(channels);
    let chunks = count * kernel * kernel * (channels / together);
    // The largest numbers that a kernel has besides: a chunk of the images, and a stretched place times a size.
    u32::try_from(images * size.0 * size.1 * channels).ok()?;
    u32::try_from(seen.0.max(seen.1) * size.0.max(size.1)).ok()?;
    let args = Args::buffers(2).sizes(&[
        chunks, first, channels, size.0, size.1, seen.0, seen.1, out.0, out.1, kernel, stride,
        before,
    ]);
    args.launch_flat("elementwise", reading.name("patches", together), chunks)
}

/// Layer norm of `(rows, width)`, then positions `(count, width)` of which each serves `run` rows.
///
/// Buffers: the input, weight, bias, positions (whatever if there are none), the result.
pub(super) fn layer_norm(
    reading: Reading,
    (rows, width): (usize, usize),
    (positions, run): (usize, usize),
    eps: f64,
) -> Option<Launch> {
    let together = reading.together(width);
    u32::try_from(rows * width).ok()?;
    let args = Args::buffers(5).sizes(&[rows, width, positions, run]).number(eps);
    let name = ("norm", reading.name("layer_norm", together));
    args.launch(name, rows.div_ceil(THREADS / 32), THREADS, 0)
}

/// The three passes of a group norm, and the values of f32 that they leave each other.
///
/// Buffers: the input, weight, bias, sums, means, scales, the result.
pub(super) struct GroupNorm {
    pub(super) launches: [Launch; 3],
    pub(super) sums: usize,
    /// Means, and as many scales.
    pub(super) means: usize,
}

/// Group norm of `(images, pixels, channels)`.
pub(super) fn group_norm(
    reading: Reading,
    (images, pixels, channels): (usize, usize, usize),
    options: &GroupNormOptions,
) -> Option<GroupNorm> {
    let GroupNormOptions { groups, eps, frames, silu } = *options;
    let together = reading.together(channels);
    let across = channels / together;
    let rows = (THREADS / across).max(1);
    let threads = rows * across;
    if threads > 1024 || pixels == 0 {
        return None;
    }
    // No piece is so small that most of the work is adding up threads.
    let pieces = BLOCKS.div_ceil(images.max(1)).min(pixels.div_ceil(8 * rows));
    let piece = pixels.div_ceil(pieces);
    let pieces = pixels.div_ceil(piece);
    let clips = images / frames;
    let chunks = images * pixels * across;
    let span = frames * pixels * across;
    u32::try_from(images * pixels * channels).ok()?;
    let sums = Args::of(&[0, 3]).sizes(&[pixels, piece, pieces, channels, groups, frames]).launch(
        ("norm", reading.name("group_sums", together)),
        images * pieces,
        threads,
        rows * channels * 2 * size_of::<f32>(),
    )?;
    let fold = Args::of(&[0, 3, 1, 4, 5])
        .sizes(&[clips, pixels, pieces, channels, groups, frames])
        .number(eps)
        .launch(
            ("norm", format!("group_fold_{}", reading.format.name())),
            (clips * groups).div_ceil(THREADS / 32),
            THREADS,
            0,
        )?;
    let apply = Args::of(&[0, 4, 5, 2, 6])
        .sizes(&[chunks, span, channels, usize::from(silu)])
        .launch_flat("norm", reading.name("group_apply", together), chunks)?;
    Some(GroupNorm {
        launches: [sums, fold, apply],
        sums: images * pieces * groups * 2,
        means: clips * channels,
    })
}

/// A `(batch, tokens, places, heads, dim)` view.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) dims: [usize; 5],
    /// Strides of all dimensions but the last, which is contiguous.
    pub(super) strides: [usize; 4],
    pub(super) start: usize,
}

impl View {
    fn is_aligned(&self) -> bool {
        let mut steps = self.dims.iter().zip(self.strides).filter(|(size, _)| **size > 1);
        self.start.is_multiple_of(8) && steps.all(|(_, step)| step.is_multiple_of(8))
    }
}

/// Attention of f16 or bf16. Buffers: queries, keys, values, a contiguous result of the shape of the queries.
pub(super) fn attention(format: Format, [q, k, v]: [View; 3], scale: f64) -> Option<Launch> {
    let [batch, queries, places, heads, dim] = q.dims;
    let keys = k.dims[1];
    let (size, tile) = DIMS.into_iter().find(|(size, _)| *size >= dim)?;
    let aligned = dim.is_multiple_of(8) && [q, k, v].iter().all(View::is_aligned);
    if format == Format::F32 || !aligned || keys == 0 || queries == 0 {
        return None;
    }
    let sequences = batch * places * heads;
    let args = Args::buffers(4).sizes(&[queries, keys, places, heads, dim]);
    let args = args.sizes(&[q.strides, k.strides, v.strides].concat()).number(scale);
    let name = |kind: &str| ("attention", format!("attention_{kind}_{}_{size}", format.name()));
    let row = (size + 8) * 2;
    if queries.max(keys) <= SHORT {
        let shared = 4 * 2 * 16 * row;
        args.sizes(&[sequences]).launch(name("short"), sequences.div_ceil(4), 128, shared)
    } else {
        let blocks = sequences.checked_mul(queries.div_ceil(64))?;
        args.launch(name("long"), blocks, 128, 4 * tile * row)
    }
}

/// The names of all kernels.
#[cfg(test)]
pub(super) fn kernels() -> Vec<String> {
    let mut names = Vec::new();
    for format in Format::ALL {
        for op in ["epilogue", "geglu", "patches", "layer_norm", "group_sums", "group_apply"] {
            for together in [1, format.wide()] {
                names.push(Reading { format, aligned: true }.name(op, together));
            }
        }
        names.push(format!("group_fold_{}", format.name()));
        for (dim, _) in DIMS.iter().filter(|_| format != Format::F32) {
            for kind in ["long", "short"] {
                names.push(format!("attention_{kind}_{}_{dim}", format.name()));
            }
        }
    }
    names
}
