-- Take a message back that was not said.
--
-- ARGV[2] its id

remove({ ARGV[2] })
