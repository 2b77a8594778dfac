// Bundles on disk.
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <memory>

#ifdef FLOWBLENDING_LIBCRYPTO
#include <openssl/evp.h>
#endif

#include "failure.hpp"
#include "spec.hpp"

namespace flowblending::detail {
namespace {

constexpr std::int64_t kLargestManifest = 16 << 20;

void verify_file(const Manifest& manifest, const File& file, Verify verify) {
  const std::string path = manifest.folder + "/" + file.path;
  struct stat status{};
  if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
    fail(Code::bad_file, path, " is missing from the bundle; rebuild with: ", manifest.rebuild);
  }
  if (status.st_size != file.bytes) {
    fail(Code::bad_file, path, " has ", status.st_size, " bytes, but ", file.bytes,
         " were expected; rebuild with: ", manifest.rebuild);
  }
  if (verify == Verify::checksums && sha256_of(path) != file.sha256) {
    fail(Code::bad_file, path,
         " was altered after the build (its SHA-256 differs from the manifest's); rebuild with: ", manifest.rebuild);
  }
}

}  // namespace

std::string read_file(const std::string& path, std::int64_t limit) {
  struct stat status{};  // a folder can be opened, and a pipe would be waited for
  const bool regular = stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
  std::ifstream stream;
  if (regular) stream.open(path, std::ios::binary | std::ios::ate);
  const std::int64_t size = stream.is_open() ? static_cast<std::int64_t>(stream.tellg()) : -1;
  if (size < 0 || size > limit) {
    fail(Code::bad_file, path,
         size < 0 ? " cannot be read; name a file that is there and may be read."
                  : " is far too large for what it should be; give another file.");
  }
  std::string content(static_cast<std::size_t>(size), '\0');
  stream.seekg(0);
  if (!stream.read(content.data(), size)) fail(Code::bad_file, path, " cannot be read to its end; check the disk.");
  return content;
}

std::string sha256_of(const std::string& path) {
#ifdef FLOWBLENDING_LIBCRYPTO
  std::ifstream stream(path, std::ios::binary);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  bool good = stream && context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  std::vector<char> chunk(1 << 20);
  while (good && stream) {
    stream.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    good = EVP_DigestUpdate(context.get(), chunk.data(), static_cast<std::size_t>(stream.gcount())) == 1;
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  good = good && !stream.bad() && EVP_DigestFinal_ex(context.get(), digest, &length) == 1;
  if (!good) fail(Code::bad_file, path, " cannot be read to its end; check its permissions and the disk.");
  std::string text;
  for (unsigned int index = 0; index < length; ++index) {
    text += "0123456789abcdef"[digest[index] >> 4];
    text += "0123456789abcdef"[digest[index] & 15];
  }
  return text;
#else
  fail(Code::unavailable, "The SHA-256 of ", path,
       " was asked for, but this library was built without libcrypto; verify sizes, or build it with OpenSSL.");
#endif
}

Manifest open_bundle(const std::string& folder, Verify verify) {
  const std::string path = folder + "/manifest.json";
  if (access(path.c_str(), R_OK) != 0) {
    fail(Code::bad_file, folder,
         " is no bundle (it has no readable manifest.json); make one with fb-build-engines --out ", folder, ".");
  }
  Manifest manifest = parse_manifest(read_file(path, kLargestManifest), path);
  manifest.folder = folder;
  for (const File& file : manifest.files) verify_file(manifest, file, verify);
  return manifest;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::float16: return "float16";
    case DType::int64: return "int64";
    case DType::int32: return "int32";
  }
  return "an unknown type";
}

}  // namespace flowblending::detail

namespace flowblending {

std::int64_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::float32: return 4;
    case DType::float16: return 2;
    case DType::int64: return 8;
    case DType::int32: return 4;
  }
  return 0;
}

Result<Bundle> Bundle::open(const std::string& folder, Verify verify) noexcept {
  return detail::guarded_result<Bundle>(
      [&] { return Bundle(std::make_shared<const detail::Manifest>(detail::open_bundle(folder, verify))); });
}

const std::string& Bundle::id() const noexcept { return manifest_->id; }

std::array<std::int64_t, 4> Bundle::latent_shape() const noexcept { return manifest_->latent_shape(); }

}  // namespace flowblending
