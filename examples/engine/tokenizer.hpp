#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bda/checkpoint/json.hpp"

namespace engine {

/// The byte-level BPE of a Hugging Face tokenizer.json (GPT-2's: model BPE, pre-tokenizer ByteLevel
/// with its regular expression, no normalizer). Outside ASCII, quotes and dashes (U+2000 to U+206F)
/// count as punctuation and all else as letters, where the expression asks Unicode's tables: rare
/// texts are split differently, and any text survives encode and decode.
class Tokenizer {
 public:
  /// Throws bda::Error for a file that is missing or of another kind.
  explicit Tokenizer(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw bda::Error(file.string(), "a readable file", "none");
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    const auto json = bda::checkpoint::parse_json_object(text, file.string());
    try {
      const auto& model = json.at("model");
      if (model.at("type") != "BPE" || json.at("pre_tokenizer").at("type") != "ByteLevel" ||
          !json.at("normalizer").is_null())
        throw bda::Error(file.string(), "byte-level BPE without normalizer", "another tokenizer");
      for (const auto& [token, id] : model.at("vocab").items()) {
        ids_[token] = id.get<std::int64_t>();
        if (tokens_.size() <= id.get<std::size_t>()) tokens_.resize(id.get<std::size_t>() + 1);
        tokens_[id.get<std::size_t>()] = token;
      }
      for (const auto& added : json.at("added_tokens"))
        specials_[added.at("content")] = added.at("id").get<std::int64_t>();
      for (const auto& merge : model.at("merges"))
        ranks_.emplace(std::pair(merge.at(0), merge.at(1)), ranks_.size());
    } catch (const bda::checkpoint::Json::exception& error) {
      throw bda::Error(file.string(), "a tokenizer.json", error.what());
    }
    // GPT-2 writes a byte as a printable character: itself, or one from 256 on.
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (33 <= byte && byte <= 126) || (161 <= byte && byte != 173);
      const std::string symbol = utf8(printable ? byte : next++);
      symbols_[static_cast<std::size_t>(byte)] = symbol;
      bytes_[symbol] = static_cast<char>(byte);
    }
  }

  [[nodiscard]] std::vector<std::int64_t> encode(std::string_view text) const {
    std::vector<std::int64_t> out;
    while (!text.empty()) {
      std::size_t end = text.size();  // of what comes before a special token
      for (const auto& [special, id] : specials_) end = std::min(end, text.find(special));
      if (end == 0) {
        for (const auto& [special, id] : specials_) {
          if (!text.starts_with(special)) continue;
          out.push_back(id);
          text.remove_prefix(special.size());
          break;
        }
        continue;
      }
      const std::size_t length = first_word(text.substr(0, end));
      for (const std::string& piece : merged(text.substr(0, length))) {
        const auto id = ids_.find(piece);
        if (id == ids_.end()) throw bda::Error("text", "bytes of the vocabulary", piece);
        out.push_back(id->second);
      }
      text.remove_prefix(length);
    }
    return out;
  }

  [[nodiscard]] std::string decode(const std::vector<std::int64_t>& ids) const {
    std::string out;
    for (const std::int64_t id : ids) {
      const std::string& token = tokens_.at(static_cast<std::size_t>(id));
      for (std::size_t i = 0; i < token.size();) {
        std::size_t length = 1;  // of a character
        while (i + length < token.size() && (token[i + length] & 0xc0) == 0x80) ++length;
        const std::string symbol = token.substr(i, length);
        const auto byte = bytes_.find(symbol);
        out += byte == bytes_.end() ? symbol : std::string(1, byte->second);
        i += length;
      }
    }
    return out;
  }

 private:
  enum class Kind { kSpace, kLetter, kDigit, kOther };

  /// Of the character that text[i] is a byte of.
  static Kind kind(std::string_view text, std::size_t i) {
    while (i > 0 && (text[i] & 0xc0) == 0x80) --i;
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == ' ' || (9 <= byte && byte <= 13)) return Kind::kSpace;
    if ('0' <= byte && byte <= '9') return Kind::kDigit;
    if (byte >= 0x80) {
      const std::string_view character = text.substr(i, 2);
      return character == "\xe2\x80" || character == "\xe2\x81" ? Kind::kOther : Kind::kLetter;
    }
    const int lower = byte | 0x20;
    return 'a' <= lower && lower <= 'z' ? Kind::kLetter : Kind::kOther;
  }

  /// The length of the first match of
  /// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  static std::size_t first_word(std::string_view text) {
    for (const std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
      if (text.starts_with(suffix)) return suffix.size();
    const auto run = [&](std::size_t from) {
      std::size_t end = from + 1;
      while (end < text.size() && kind(text, end) == kind(text, from)) ++end;
      return end;
    };
    const std::size_t first = text[0] == ' ' && text.size() > 1 ? 1 : 0;
    if (kind(text, first) != Kind::kSpace) return run(first);
    const std::size_t end = run(0);  // the last space goes with the word behind it
    return end == text.size() || end == 1 ? end : end - 1;
  }

  [[nodiscard]] std::vector<std::string> merged(std::string_view word) const {
    std::vector<std::string> pieces;
    for (const char c : word) pieces.push_back(symbols_[static_cast<unsigned char>(c)]);
    for (;;) {
      std::size_t best = std::numeric_limits<std::size_t>::max(), at = 0;
      for (std::size_t i = 0; i + 1 < pieces.size(); ++i) {
        const auto rank = ranks_.find({pieces[i], pieces[i + 1]});
        if (rank != ranks_.end() && rank->second < best) best = rank->second, at = i;
      }
      if (best == std::numeric_limits<std::size_t>::max()) return pieces;
      pieces[at] += pieces[at + 1];
      pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
  }

  /// Of a code point below 0x800.
  static std::string utf8(int c) {
    if (c < 0x80) return {static_cast<char>(c)};
    return {static_cast<char>(0xc0 | (c >> 6)), static_cast<char>(0x80 | (c & 0x3f))};
  }

  std::map<std::string, std::int64_t> ids_, specials_;
  std::vector<std::string> tokens_;
  std::map<std::pair<std::string, std::string>, std::size_t> ranks_;
  std::array<std::string, 256> symbols_;
  std::map<std::string, char> bytes_;
};

}  // namespace engine
