-- Makes one X-Forwarded-For of several: each proxy before this router may have added a line of its own, and ours came last.
-- Applications read one line, some the first and some the last; the client's address is told by all of them, in their order.

core.register_action("chain", { "http-req" }, function(txn)
    local lines = txn.http:req_get_headers()["x-forwarded-for"] -- counted from 0, so that # is the last one's number
    local said = {}
    for number = 0, #lines - 1 do
        if string.find(lines[number], "[^, \t]") then table.insert(said, lines[number]) end
    end
    if #said > 0 then txn:set_var("txn.chain", table.concat(said, ", ")) end
    table.insert(said, lines[#lines])
    txn.http:req_set_header("x-forwarded-for", table.concat(said, ", "))
end)
