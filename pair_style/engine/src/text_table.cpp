#include "text_table.h"

#include <cstdint>
#include <stdexcept>

namespace nequip_md {
namespace {

class Parser {
 public:
    explicit Parser(const std::string &json) : json_(json) {}

    std::unordered_map<std::string, std::string> table()
    {
        std::unordered_map<std::string, std::string> result;
        expect('{');
        if (!accept('}')) {
            do {
                const std::string key = text("a key");
                expect(':');
                result[key] = text("the value of '" + key + "'");
            } while (accept(','));
            expect('}');
        }
        skip_space();
        if (at_ != json_.size()) throw std::invalid_argument("the metadata go on after their table");
        return result;
    }

 private:
    void skip_space()
    {
        while (at_ < json_.size() && std::string(" \t\r\n").find(json_[at_]) != std::string::npos) ++at_;
    }

    bool accept(char wanted)
    {
        skip_space();
        if (at_ >= json_.size() || json_[at_] != wanted) return false;
        ++at_;
        return true;
    }

    void expect(char wanted)
    {
        if (!accept(wanted))
            throw std::invalid_argument(std::string("the metadata are not a table of text: '") + wanted +
                                        "' is missing at byte " + std::to_string(at_));
    }

    char next()
    {
        if (at_ >= json_.size()) throw std::invalid_argument("the metadata end within a text");
        return json_[at_++];
    }

    std::string text(const std::string &what)
    {
        if (!accept('"')) throw std::invalid_argument("the metadata are not a table of text: " + what + " is no text");
        std::string result;
        for (char c = next(); c != '"'; c = next()) {
            if (c != '\\') {
                result += c;
                continue;
            }
            const char escaped = next();
            const std::string names = "bfnrt", meanings = "\b\f\n\r\t";
            if (const size_t found = names.find(escaped); found != std::string::npos)
                result += meanings[found];
            else if (escaped == 'u')
                append_utf8(result, code_point());
            else
                result += escaped;
        }
        return result;
    }

    uint32_t four_digits()
    {
        uint32_t value = 0;
        for (int k = 0; k < 4; ++k) {
            const char digit = next();
            const size_t found =
                std::string("0123456789abcdef").find(digit >= 'A' && digit <= 'F' ? digit + 32 : digit);
            if (found == std::string::npos) throw std::invalid_argument("the metadata have a bad \\u escape");
            value = 16 * value + static_cast<uint32_t>(found);
        }
        return value;
    }

    uint32_t code_point()
    {
        const uint32_t high = four_digits();
        if (high < 0xD800 || high > 0xDBFF) return high;
        // characters beyond 16 bits are a pair of escapes
        if (next() != '\\' || next() != 'u') throw std::invalid_argument("the metadata have half of a \\u pair");
        return 0x10000 + ((high - 0xD800) << 10) + ((four_digits() - 0xDC00) & 0x3FF);
    }

    static void append_utf8(std::string &text, uint32_t code)
    {
        if (code < 0x80) {
            text += static_cast<char>(code);
            return;
        }
        const int following = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        const uint32_t marks[] = {0, 0xC0, 0xE0, 0xF0};
        text += static_cast<char>(marks[following] | (code >> (6 * following)));
        for (int k = following - 1; k >= 0; --k) text += static_cast<char>(0x80 | ((code >> (6 * k)) & 0x3F));
    }

    const std::string &json_;
    size_t at_ = 0;
};

}  // namespace

std::unordered_map<std::string, std::string> parse_text_table(const std::string &json) { return Parser(json).table(); }

}  // namespace nequip_md
