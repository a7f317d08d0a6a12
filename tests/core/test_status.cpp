#include <bda/core/status.hpp>
#include <catch2/catch_test_macros.hpp>

namespace {

using bda::Status;

TEST_CASE("A status is ok unless made otherwise") {
  STATIC_CHECK(Status().ok());
  STATIC_CHECK(static_cast<bool>(Status()));
  CHECK(Status().message() == "ok");
  CHECK(Status().code() == Status::Code::kOk);
}

TEST_CASE("An error status names the argument and both values") {
  constexpr Status status = Status::invalid("x.extent(2)", "equal to query_dim", 512, 500);
  STATIC_CHECK_FALSE(status.ok());
  STATIC_CHECK_FALSE(static_cast<bool>(status));
  CHECK(status.code() == Status::Code::kInvalidArgument);
  CHECK(std::string(status.argument()) == "x.extent(2)");
  CHECK(status.expected() == 512);
  CHECK(status.given() == 500);
  CHECK(status.message() == "x.extent(2): expected equal to query_dim = 512, got 500");
}

TEST_CASE("A status carries the code it was made with") {
  for (auto code :
       {Status::Code::kUnsupported, Status::Code::kWorkspaceTooSmall, Status::Code::kDeviceError}) {
    const Status status = Status::error(code, "workspace", "at least", 8, 4);
    CHECK(status.code() == code);
    CHECK_FALSE(status.ok());
  }
}

}  // namespace
