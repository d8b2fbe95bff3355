// One line on stderr that shows how far something is; silent where stderr is not a terminal.
#ifndef WSYNC_CLIENT_CLI_PROGRESS_BAR_H_
#define WSYNC_CLIENT_CLI_PROGRESS_BAR_H_

#include <string>
#include <string_view>

namespace wsync::cli {

class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();  // clears the line
  // `fraction` in [0, 1]; `note` is shown behind it: "1.2 GB/s", "2/2 staged".
  void Update(double fraction, std::string_view note);
  void Wait(std::string_view for_what);  // "waiting for a version": nothing is under way yet
  void Clear();

 private:
  void Show(const std::string& line);

  std::string label_;
  bool enabled_;
  bool color_;
};

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_PROGRESS_BAR_H_
