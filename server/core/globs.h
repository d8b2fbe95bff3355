// Shell-style globs over tensor names: '*' any run of characters (dots too), '?' one, '[a-z]' a set, '[!a-z]' its
// complement; a ']' first in a set is a member. Pure functions.
#ifndef WSYNC_SERVER_CORE_GLOBS_H_
#define WSYNC_SERVER_CORE_GLOBS_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace wsync {

// Whether all of `text` matches; at most glob.size() * text.size() steps. A '[' that nothing closes is a character.
bool GlobMatch(std::string_view glob, std::string_view text);

// Position of the first '[' that no ']' closes, or npos.
size_t UnclosedSet(std::string_view glob);

bool IsGlob(std::string_view text);  // has a character that means more than itself

// The same as a regular expression of RE2, without anchors.
std::string GlobAsRegex(std::string_view glob);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_GLOBS_H_
