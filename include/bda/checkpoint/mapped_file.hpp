#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "bda/core/error.hpp"

namespace bda::inline v0::checkpoint {

/// A whole file mapped into memory, read-only (POSIX).
///
/// Pages come in when they are touched and the system may drop them again, so a checkpoint larger
/// than memory can be read tensor by tensor. As with any mapping, the file must not be truncated
/// by somebody else while this object lives.
class MappedFile {
 public:
  /// Throws `Error` where `path` is no readable regular file.
  explicit MappedFile(std::filesystem::path path) : path_(std::move(path)) {
    // O_NONBLOCK: opening a pipe must not wait for its writer.
    const Descriptor file{::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.id < 0) fail("a readable file", errno);
    struct stat status {};
    if (::fstat(file.id, &status) != 0) fail("a readable file", errno);
    if (!S_ISREG(status.st_mode)) throw Error(path_.string(), "a regular file", "something else");
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;  // mmap refuses an empty range
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.id, 0);
    if (address == MAP_FAILED) fail("a file that can be mapped", errno);
    address_ = static_cast<const std::byte*>(address);
  }
  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)),
        address_(std::exchange(other.address_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(address_, other.address_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedFile() {
    if (address_ != nullptr) ::munmap(const_cast<std::byte*>(address_), size_);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::span<const std::byte> bytes() const { return {address_, size_}; }
  [[nodiscard]] std::string_view text() const {
    return {reinterpret_cast<const char*>(address_), size_};
  }

  /// Gives the memory of the pages wholly within `part` of some mapped file back to the system.
  /// Their content stays: they come in from the file again when touched.
  static void release(std::span<const std::byte> part) {
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<std::uintptr_t>(part.data());
    const std::uintptr_t first = (begin + page - 1) / page * page;
    const std::uintptr_t end = (begin + part.size()) / page * page;
    if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
  }

 private:
  struct Descriptor {
    int id;
    ~Descriptor() {
      if (id >= 0) ::close(id);
    }
  };

  [[noreturn]] void fail(const char* expected, int error) const {
    throw Error(path_.string(), expected, std::generic_category().message(error));
  }

  std::filesystem::path path_;
  const std::byte* address_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace bda::inline v0::checkpoint
