// libcuda, cuBLAS, cuDNN and cuRAND of a GPU that is a CPU: as much of them as candle and this project call.
//
// Everything happens at once and in order: a stream has nothing waiting. Memory begins as NaN and ends at a page that
// must not be touched. Kernels are looked up in the PTX that they are said to be in, and run from their source.
#include "cuda_on_cpu.h"

#include <mutex>

namespace {

enum Status { OK = 0, INVALID = 1, NOT_FOUND = 500 };

std::mutex lock;

// Sizes by address.
std::map<u64, size_t> allocations;

size_t whole(size_t size) { return (size + 31) / 32 * 32; }

int allocate(u64 *to, size_t size) {
  if (size == 0) return INVALID;
  const std::lock_guard<std::mutex> guard(lock);
  unsigned char *memory = host::guarded(whole(size));
  std::memset(memory, 0xff, whole(size));
  *to = reinterpret_cast<u64>(memory);
  allocations[*to] = size;
  return OK;
}

int release(u64 memory) {
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = allocations.find(memory);
  if (found == allocations.end()) host::fail("freed what was not allocated");
  host::unguard(reinterpret_cast<unsigned char *>(memory), whole(found->second));
  allocations.erase(found);
  return OK;
}

struct Module {
  std::string ptx;
};
struct Function {
  std::string name;
  const host::Kernel *kernel;
};

std::map<std::string, u64> launched;

// Says which kernels ran, if asked.
struct Report {
  ~Report() {
    if (!std::getenv("CUDA_ON_CPU_REPORT")) return;
    for (const auto &[name, count] : launched) std::fprintf(stderr, "cuda on cpu: %8llu %s\n", count, name.c_str());
  }
} report;

void *handle() { return new int; }

float read(const void *values, int format, size_t at) {
  switch (format) {
    case 0: return static_cast<const float *>(values)[at];
    case 1: return static_cast<float>(static_cast<const double *>(values)[at]);
    case 2: return widen(static_cast<const f16 *>(values)[at]);
    case 14: return widen(static_cast<const bf16 *>(values)[at]);
    default: host::fail("a number format without a reader");
  }
}

void write(void *values, int format, size_t at, float v) {
  switch (format) {
    case 0: static_cast<float *>(values)[at] = v; break;
    case 1: static_cast<double *>(values)[at] = v; break;
    case 2: narrow(v, static_cast<f16 *>(values)[at]); break;
    case 14: narrow(v, static_cast<bf16 *>(values)[at]); break;
    default: host::fail("a number format without a writer");
  }
}

}  // namespace

std::map<std::string, host::Kernel> &host::kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

#define CALL extern "C" __attribute__((visibility("default"))) int

// The driver.

CALL cuInit(unsigned) { return OK; }
CALL cuDeviceGet(int *device, int) { return *device = 0, OK; }
CALL cuDeviceGetCount(int *count) { return *count = 1, OK; }
CALL cuDeviceGetName(char *name, int size, int) { return std::snprintf(name, size, "a CPU that plays a GPU"), OK; }
CALL cuDeviceGetAttribute(int *value, int attribute, int) {
  switch (attribute) {
    case 1: *value = 1024; break;   // threads of a block
    case 16: *value = 132; break;   // multiprocessors
    case 75: *value = 9; break;     // compute capability
    case 76: *value = 0; break;
    default: *value = 1;            // what else is asked for is there: memory pools, say
  }
  return OK;
}
CALL cuDevicePrimaryCtxRetain(void **context, int) { return *context = handle(), OK; }
CALL cuDevicePrimaryCtxRelease_v2(int) { return OK; }
CALL cuCtxSetCurrent(void *) { return OK; }
CALL cuCtxGetCurrent(void **context) {
  static int current;
  return *context = &current, OK;
}
CALL cuCtxSynchronize() { return OK; }
CALL cuStreamCreate(void **stream, unsigned) { return *stream = handle(), OK; }
CALL cuStreamDestroy_v2(void *) { return OK; }
CALL cuStreamSynchronize(void *) { return OK; }
CALL cuStreamWaitEvent(void *, void *, unsigned) { return OK; }
CALL cuStreamIsCapturing(void *, int *status) { return *status = 0, OK; }
CALL cuEventCreate(void **event, unsigned) { return *event = handle(), OK; }
CALL cuEventDestroy_v2(void *) { return OK; }
CALL cuEventRecord(void *, void *) { return OK; }
CALL cuEventSynchronize(void *) { return OK; }
CALL cuEventQuery(void *) { return OK; }
CALL cuMemAlloc_v2(u64 *to, size_t size) { return allocate(to, size); }
CALL cuMemAllocAsync(u64 *to, size_t size, void *) { return allocate(to, size); }
CALL cuMemFree_v2(u64 memory) { return release(memory); }
CALL cuMemFreeAsync(u64 memory, void *) { return release(memory); }
CALL cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = handle(), OK; }
CALL cuMemPoolSetAttribute(void *, int, void *) { return OK; }
CALL cuMemGetInfo_v2(size_t *free, size_t *total) { return *total = 80ull << 30, *free = 79ull << 30, OK; }
CALL cuMemcpyHtoD_v2(u64 to, const void *from, size_t size) {
  return std::memcpy(reinterpret_cast<void *>(to), from, size), OK;
}
CALL cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t size, void *) { return cuMemcpyHtoD_v2(to, from, size); }
CALL cuMemcpyDtoH_v2(void *to, u64 from, size_t size) {
  return std::memcpy(to, reinterpret_cast<void *>(from), size), OK;
}
CALL cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t size, void *) { return cuMemcpyDtoH_v2(to, from, size); }
CALL cuMemcpyDtoD_v2(u64 to, u64 from, size_t size) {
  return std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), size), OK;
}
CALL cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t size, void *) { return cuMemcpyDtoD_v2(to, from, size); }
CALL cuMemsetD8_v2(u64 to, unsigned char value, size_t size) {
  return std::memset(reinterpret_cast<void *>(to), value, size), OK;
}
CALL cuMemsetD8Async(u64 to, unsigned char value, size_t size, void *) { return cuMemsetD8_v2(to, value, size); }
CALL cuMemHostAlloc(void **to, size_t size, unsigned) { return *to = std::malloc(size), OK; }
CALL cuMemFreeHost(void *memory) { return std::free(memory), OK; }
CALL cuModuleLoadData(void **module, const void *image) {
  return *module = new Module{static_cast<const char *>(image)}, OK;
}
CALL cuModuleUnload(void *) { return OK; }
CALL cuModuleGetFunction(void **function, void *module, const char *name) {
  const std::string entry = std::string(".entry ") + name + "(";
  const auto found = host::kernels().find(name);
  if (static_cast<Module *>(module)->ptx.find(entry) == std::string::npos || found == host::kernels().end()) {
    std::fprintf(stderr, "cuda on cpu: no kernel %s\n", name);
    return NOT_FOUND;
  }
  return *function = new Function{name, &found->second}, OK;
}
CALL cuFuncSetAttribute(void *, int, int) { return OK; }
CALL cuLaunchKernel(void *function, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared, void *, void **parameters,
                    void **) {
  const std::lock_guard<std::mutex> guard(lock);
  const Function &called = *static_cast<Function *>(function);
  static u32 seed = 0;
  launched[called.name]++;
  // An empty grid is an error on a GPU as well.
  if (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024) return INVALID;
  host::launch({gx, gy, gz}, {bx, by, bz}, shared, seed++, called.kernel->alone, called.kernel->bind(parameters));
  return OK;
}
CALL cuGetErrorName(int, const char **name) { return *name = "an error", OK; }
CALL cuGetErrorString(int, const char **text) { return *text = "an error of a GPU that is a CPU", OK; }

// cuRAND: a generator that is never asked.

CALL curandCreateGenerator(void **generator, int) { return *generator = handle(), OK; }
CALL curandDestroyGenerator(void *) { return OK; }
CALL curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return OK; }
CALL curandSetGeneratorOffset(void *, unsigned long long) { return OK; }
CALL curandSetStream(void *, void *) { return OK; }

// cuBLAS: matrices by columns.

CALL cublasCreate_v2(void **handle_) { return *handle_ = handle(), OK; }
CALL cublasDestroy_v2(void *) { return OK; }
CALL cublasSetStream_v2(void *, void *) { return OK; }
CALL cublasGemmStridedBatchedEx(void *, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha,
                                const void *a, int a_format, int lda, long long a_stride, const void *b, int b_format,
                                int ldb, long long b_stride, const void *beta, void *c, int c_format, int ldc,
                                long long c_stride, int batch, int compute, int) {
  const std::lock_guard<std::mutex> guard(lock);
  // Sums in f32: 68, or 77 with shorter mantissas. 70 is f64.
  if (compute != 68 && compute != 77) host::fail("products are summed in another format");
  if (lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m) return 7;
  const float times = *static_cast<const float *>(alpha), keep = *static_cast<const float *>(beta);
  launched["cublas"]++;
  std::vector<float> left(static_cast<size_t>(m) * k), right(static_cast<size_t>(k) * n);
  for (int i = 0; i < batch; i++) {
    for (int row = 0; row < m; row++) {
      for (int inner = 0; inner < k; inner++) {
        const size_t at = transpose_a ? static_cast<size_t>(row) * lda + inner : static_cast<size_t>(inner) * lda + row;
        left[static_cast<size_t>(row) * k + inner] = read(a, a_format, i * a_stride + at);
      }
    }
    for (int column = 0; column < n; column++) {
      for (int inner = 0; inner < k; inner++) {
        const size_t at =
            transpose_b ? static_cast<size_t>(inner) * ldb + column : static_cast<size_t>(column) * ldb + inner;
        right[static_cast<size_t>(column) * k + inner] = read(b, b_format, i * b_stride + at);
      }
    }
    for (int column = 0; column < n; column++) {
      for (int row = 0; row < m; row++) {
        const float *x = &left[static_cast<size_t>(row) * k], *y = &right[static_cast<size_t>(column) * k];
        double sum = 0.0;
        for (int inner = 0; inner < k; inner++) sum += static_cast<double>(x[inner]) * y[inner];
        const size_t at = i * c_stride + static_cast<size_t>(column) * ldc + row;
        const float before = keep == 0.0f ? 0.0f : keep * read(c, c_format, at);
        write(c, c_format, at, times * static_cast<float>(sum) + before);
      }
    }
  }
  return OK;
}

// cuDNN: descriptors hold sizes (n, c, h, w) and strides.

namespace {

struct Tensor {
  int format;
  size_t sizes[4], strides[4];

  float at(const void *values, size_t n, size_t c, size_t h, size_t w) const {
    return read(values, format, index(n, c, h, w));
  }
  size_t index(size_t n, size_t c, size_t h, size_t w) const {
    return n * strides[0] + c * strides[1] + h * strides[2] + w * strides[3];
  }
  void set(int type, bool channels_last, int n, int c, int h, int w) {
    const int formats[] = {0, 1, 2};
    format = type == 9 ? 14 : formats[type];
    const size_t N = n, C = c, H = h, W = w;
    const size_t all[] = {N, C, H, W}, last[] = {C * H * W, 1, C * W, C}, first[] = {C * H * W, H * W, W, 1};
    std::copy(all, all + 4, sizes);
    std::copy(channels_last ? last : first, (channels_last ? last : first) + 4, strides);
  }
};

struct Convolution {
  int padding[2], stride[2], dilation[2], compute;
};

size_t outputs(const Tensor &x, const Tensor &w, const Convolution &c, int axis) {
  return (x.sizes[2 + axis] + 2 * c.padding[axis] - c.dilation[axis] * (w.sizes[2 + axis] - 1) - 1) / c.stride[axis] + 1;
}

// What it asks for and must be given, to see that it is.
constexpr size_t WORKSPACE = 64;

}  // namespace

CALL cudnnCreate(void **handle_) { return *handle_ = handle(), OK; }
CALL cudnnDestroy(void *) { return OK; }
CALL cudnnSetStream(void *, void *) { return OK; }
CALL cudnnCreateTensorDescriptor(void **to) { return *to = new Tensor{}, OK; }
CALL cudnnDestroyTensorDescriptor(void *tensor) { return delete static_cast<Tensor *>(tensor), OK; }
CALL cudnnSetTensor4dDescriptor(void *tensor, int order, int type, int n, int c, int h, int w) {
  return static_cast<Tensor *>(tensor)->set(type, order == 1, n, c, h, w), OK;
}
CALL cudnnSetTensor4dDescriptorEx(void *tensor, int type, int n, int c, int h, int w, int sn, int sc, int sh, int sw) {
  Tensor &to = *static_cast<Tensor *>(tensor);
  to.set(type, false, n, c, h, w);
  const int strides[] = {sn, sc, sh, sw};
  std::copy(strides, strides + 4, to.strides);
  return OK;
}
CALL cudnnCreateFilterDescriptor(void **to) { return cudnnCreateTensorDescriptor(to); }
CALL cudnnDestroyFilterDescriptor(void *filter) { return cudnnDestroyTensorDescriptor(filter); }
CALL cudnnSetFilter4dDescriptor(void *filter, int type, int order, int k, int c, int h, int w) {
  return cudnnSetTensor4dDescriptor(filter, order, type, k, c, h, w);
}
CALL cudnnCreateConvolutionDescriptor(void **to) { return *to = new Convolution{}, OK; }
CALL cudnnDestroyConvolutionDescriptor(void *it) { return delete static_cast<Convolution *>(it), OK; }
CALL cudnnSetConvolution2dDescriptor(void *it, int ph, int pw, int sh, int sw, int dh, int dw, int mode, int compute) {
  // 1 is cross-correlation.
  if (mode != 1) return 3;
  *static_cast<Convolution *>(it) = {{ph, pw}, {sh, sw}, {dh, dw}, compute};
  return OK;
}
CALL cudnnSetConvolutionMathType(void *, int) { return OK; }
CALL cudnnGetConvolutionForwardAlgorithm_v7(void *, void *, void *, void *, void *, int, int *returned, int *results) {
  // The first result: algorithm 1 and its status.
  return *returned = 1, results[0] = 1, results[1] = OK;
}
CALL cudnnGetConvolutionForwardWorkspaceSize(void *, void *, void *, void *, void *, int, size_t *size) {
  return *size = WORKSPACE, OK;
}
CALL cudnnConvolutionForward(void *, const void *alpha, void *x_, const void *x_values, void *w_, const void *w_values,
                             void *c_, int, void *workspace, size_t size, const void *beta, void *y_, void *y_values) {
  const std::lock_guard<std::mutex> guard(lock);
  const Tensor &x = *static_cast<Tensor *>(x_), &w = *static_cast<Tensor *>(w_), &y = *static_cast<Tensor *>(y_);
  const Convolution &c = *static_cast<Convolution *>(c_);
  const size_t height = outputs(x, w, c, 0), width = outputs(x, w, c, 1);
  const bool fits = x.sizes[1] == w.sizes[1] && y.sizes[0] == x.sizes[0] && y.sizes[1] == w.sizes[0] &&
                    y.sizes[2] == height && y.sizes[3] == width && x.format == w.format && y.format == x.format;
  if (!fits || size < WORKSPACE || *static_cast<const float *>(alpha) != 1.0f ||
      *static_cast<const float *>(beta) != 0.0f) {
    return 3;
  }
  std::memset(workspace, 0xff, WORKSPACE);
  launched[x.strides[1] == 1 ? "cudnn, channels last" : "cudnn"]++;
  std::vector<float> filter;
  for (size_t k = 0; k < w.sizes[0]; k++)
    for (size_t i = 0; i < w.sizes[2]; i++)
      for (size_t j = 0; j < w.sizes[3]; j++)
        for (size_t in = 0; in < w.sizes[1]; in++) filter.push_back(w.at(w_values, k, in, i, j));
  const size_t taps = w.sizes[2] * w.sizes[3], inner = taps * x.sizes[1];
  std::vector<float> seen(inner);
  for (size_t n = 0; n < x.sizes[0]; n++) {
    for (size_t row = 0; row < height; row++) {
      for (size_t column = 0; column < width; column++) {
        for (size_t tap = 0; tap < taps; tap++) {
          const size_t h = row * c.stride[0] + tap / w.sizes[3] * c.dilation[0] - c.padding[0];
          const size_t v = column * c.stride[1] + tap % w.sizes[3] * c.dilation[1] - c.padding[1];
          for (size_t in = 0; in < x.sizes[1]; in++) {
            const bool there = h < x.sizes[2] && v < x.sizes[3];
            seen[tap * x.sizes[1] + in] = there ? x.at(x_values, n, in, h, v) : 0.0f;
          }
        }
        for (size_t k = 0; k < w.sizes[0]; k++) {
          double sum = 0.0;
          for (size_t i = 0; i < inner; i++) sum += static_cast<double>(seen[i]) * filter[k * inner + i];
          write(y_values, y.format, y.index(n, k, row, column), static_cast<float>(sum));
        }
      }
    }
  }
  return OK;
}
