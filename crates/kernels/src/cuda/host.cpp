// A program that runs one kernel of this folder: what to run comes from a file, the buffers are written to another.
//
// Words of 32 bits: the kernel's number, blocks, threads, bytes of shared memory, a seed, the number of arguments, of
// each 0 and a word or 1 and the number of a buffer, the number of buffers, and of each its size in bytes and its bytes.
#include "device.cuh"

#include "attention.cu"
#include "elementwise.cu"
#include "norm.cu"

#include <fstream>
#include <tuple>
#include <utility>

namespace {

struct Given {
  std::vector<std::pair<u32, u32>> arguments;
  std::vector<unsigned char *> buffers;

  template <typename A>
  void read(size_t i, A &to) const {
    const auto [kind, word] = arguments.at(i);
    if constexpr (std::is_pointer_v<A>) {
      if (kind != 1) host::fail("a number where a buffer is wanted");
      to = reinterpret_cast<A>(buffers.at(word));
    } else {
      static_assert(sizeof(A) == 4);
      if (kind != 0) host::fail("a buffer where a number is wanted");
      std::memcpy(&to, &word, 4);
    }
  }
};

using Run = std::function<void(const Given &)>;

template <typename... A>
Run runner(void (*kernel)(A...)) {
  return [kernel](const Given &given) {
    if (given.arguments.size() != sizeof...(A)) host::fail("another number of arguments");
    std::tuple<A...> arguments;
    [&]<size_t... I>(std::index_sequence<I...>) { (given.read(I, std::get<I>(arguments)), ...); }
    (std::index_sequence_for<A...>());
    std::apply(kernel, arguments);
  };
}

const Run KERNELS[] = {
#include "kernels.inc"
};

}  // namespace

int main(int, char **arguments) {
  std::ifstream in(arguments[1], std::ios::binary);
  const auto word = [&] {
    u32 value = 0;
    in.read(reinterpret_cast<char *>(&value), 4);
    if (!in) host::fail("the file is too short");
    return value;
  };
  const Run &run = KERNELS[word()];
  const u32 blocks = word(), threads = word(), shared = word(), seed = word();
  Given given;
  given.arguments.resize(word());
  for (auto &[kind, value] : given.arguments) {
    kind = word();
    value = word();
  }
  std::vector<u32> sizes(word());
  for (u32 &size : sizes) {
    size = word();
    given.buffers.push_back(host::guarded((size + 31) / 32 * 32));
    in.read(reinterpret_cast<char *>(given.buffers.back()), size);
  }
  host::launch({blocks, 1, 1}, {threads, 1, 1}, shared, seed, false, [&] { run(given); });
  std::ofstream out(arguments[2], std::ios::binary);
  for (size_t i = 0; i < sizes.size(); i++) out.write(reinterpret_cast<const char *>(given.buffers[i]), sizes[i]);
  return out ? 0 : 1;
}
